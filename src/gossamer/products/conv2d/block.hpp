// The products of a sparse matrix in blocks of h x w weights, on batch-last images. A linear layer is a 1 x 1
// convolution of single pixels. Block row r covers the matrix rows r h + g, g < h, and is a list of columns f
// (columns.hpp).
//
//     forward     y[r h + g] += W[f, g] x[off f]           registers: G rows x R vectors of y, for one load of x
//     backward    dx[off f] += sum_g W[f, g] dy[r h + g]   registers: G rows x R vectors of dy; dx is added up packed
//                 dW[f, g] += dy[r h + g] . x[off f]       registers: G rows x Q columns of sums over a tile's pixels
//
// The part of a block beyond the edge of the matrix is neither read nor computed with. Its gradient is 0.
#pragma once
#include "columns.hpp"

namespace gs {

template <class A, class T>
void block_forward(const T* x, const A* values, const A* bias, T* y, Blocks s, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>;
    with_registers<A>(s.h, N, [&](auto group, auto vectors, auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value, G = decltype(group)::value, S = decltype(vectors)::value;
        const Columns<A> columns(s, values, g, LC, sizeof(T), g.C, m);
        const Tile& tile = columns.tile;
        const int64_t across = ceil_div(g.OW, tile.wide), pieces = ceil_div(N, LC),
                      tasks = ceil_div(g.OH, tile.high) * across * pieces;
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed;
            T* scratch = packed.get<T>(tile.channels * columns.plane);
            columns.prepare(t, threads);
            barrier(threads);
            const Grid grid(threads, tasks);
            const int64_t r0 = share(s.index.ptr, s.index.outer, t / grid.across, grid.down),
                          r1 = share(s.index.ptr, s.index.outer, t / grid.across + 1, grid.down);
            for (int64_t task = tasks * (t % grid.across) / grid.across;
                 task < tasks * (t % grid.across + 1) / grid.across; task++) {
                const int64_t start = task % pieces * LC, count = std::min<int64_t>(LC, N - start);
                const int64_t oy = task / pieces / across * tile.high, ox = task / pieces % across * tile.wide;
                const int64_t high = std::min(tile.high, g.OH - oy), wide = std::min(tile.wide, g.OW - ox);
                for (int64_t b = 0; b < tile.slabs; b++) {
                    columns.template pack<T, LC>(scratch, x, b, oy, ox, N, start, count);
                    for (int64_t r = r0; r < r1; r++) {
                        const int64_t rows = columns.rows(r), first = columns.first(b, r), last = columns.last(b, r);
                        if (b && first == last) continue;
                        for (int64_t i = 0; i < high; i++)
                            each_step<S, LC / L>(
                                0, wide, [=, &columns](auto regs, int64_t p) __attribute__((always_inline)) {
                                    const T* base = scratch + (i * g.SY * tile.slots + p) * LC;
                                    each_step<G, 1>(
                                        0, rows, [=, &columns](auto some, int64_t at) __attribute__((always_inline)) {
                                            constexpr int R = decltype(regs)::value, M = decltype(some)::value;
                                            V<A, L> acc[M][R];
                                            const int64_t o = r * s.h + at, step = g.OH * g.OW * N;
                                            T* to = y + ((o * g.OH + oy + i) * g.OW + ox + p) * N + start;
                                            GS_UNROLL
                                            for (int j = 0; j < M; j++) {
                                                if (b) load_pixels<A, L, R, LC>(to + j * step, N, acc[j], count);
                                                else
                                                    for (auto& a : acc[j]) a = splat<A, L>(bias ? bias[o + j] : A(0));
                                            }
                                            rows_from_columns<A, L, M, R>(acc, base, columns.off, columns.vals + at,
                                                                          s.h, first, last);
                                            GS_UNROLL
                                            for (int j = 0; j < M; j++)
                                                store_pixels<A, L, R, LC>(to + j * step, N, acc[j], count);
                                        });
                                });
                    }
                }
            }
        });
    });
}

// Unpacks a plane of dx into the image. Pixels below fresh_row or left of fresh_column hold the sums of other tiles and
// are added to. All others up to last_row and last_column are written.
template <class A, int L, int LC, class T>
void unpack_plane(T* plane, const A* in, const Conv& g, const Tile& tile, int64_t N, int64_t start, int64_t count,
                  int64_t top, int64_t left, int64_t fresh_row, int64_t fresh_column, int64_t last_row,
                  int64_t last_column) {
    const int64_t each = tile.slots / g.SX;
    for (int64_t r = std::clamp<int64_t>(top, 0, fresh_row); r < last_row; r++) {
        const bool within = r >= top && r < top + tile.rows;
        for (int64_t c = std::clamp<int64_t>(left, 0, fresh_column); c < last_column; c++) {
            const bool fresh = r >= fresh_row && c >= fresh_column;
            const int64_t j = c - left;
            V<A, L> sums[LC / L] = {}, old[LC / L];
            T* to = plane + (r * g.W + c) * N + start;
            if (within && j >= 0 && j < tile.slots) {
                const A* from = in + ((r - top) * tile.slots + (g.SX == 1 ? j : j % g.SX * each + j / g.SX)) * LC;
                for (int i = 0; i < LC / L; i++) sums[i] = load<A, L>(from + i * L);
            } else if (!fresh) {
                continue;
            }
            if (!fresh) {
                load_pixels<A, L, LC / L, LC>(to, N, old, count);
                for (int i = 0; i < LC / L; i++) sums[i] += old[i];
            }
            store_pixels<A, L, LC / L, LC>(to, N, sums, count);
        }
    }
}

// Each thread has lanes and channels of its own and takes the tiles of the image in order, so that no two threads write
// the same pixel.
template <class A, class T>
void block_input(const T* dy, const A* values, T* dx, Blocks s, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>;
    with_registers<A>(s.h, N, [&](auto group, auto vectors, auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value, G = decltype(group)::value, S = decltype(vectors)::value;
        const int64_t pieces = ceil_div(N, LC);
        const Columns<A> columns(s, values, g, LC, sizeof(A), ceil_div(g.C, Grid(m.threads, pieces).down), m);
        const Tile& tile = columns.tile;
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed;
            const int64_t size = tile.channels * columns.plane;
            A* scratch = packed.get<A>(size);
            columns.prepare(t, threads);
            barrier(threads);
            const Grid grid(threads, pieces);
            const int64_t b0 = tile.slabs * (t / grid.across) / grid.down,
                          b1 = tile.slabs * (t / grid.across + 1) / grid.down;
            auto each_tile = [&](auto&& f) {
                for (int64_t piece = pieces * (t % grid.across) / grid.across;
                     piece < pieces * (t % grid.across + 1) / grid.across; piece++)
                    for (int64_t oy = 0; oy < g.OH; oy += tile.high)
                        for (int64_t ox = 0; ox < g.OW; ox += tile.wide)
                            f(piece * LC, std::min<int64_t>(LC, N - piece * LC), oy, ox);
            };
            each_tile([&](int64_t start, int64_t count, int64_t oy, int64_t ox) {
                const int64_t high = std::min(tile.high, g.OH - oy), wide = std::min(tile.wide, g.OW - ox);
                const int64_t top = oy * g.SY - g.PY, left = ox * g.SX - g.PX;
                const int64_t fresh_row = oy ? std::clamp<int64_t>(top - tile.high * g.SY + tile.rows, 0, g.H) : 0;
                const int64_t fresh_column = ox ? std::clamp<int64_t>(left - tile.wide * g.SX + tile.slots, 0, g.W) : 0;
                const int64_t last_row = oy + high < g.OH ? std::clamp<int64_t>(top + tile.rows, 0, g.H) : g.H;
                const int64_t last_column = ox + wide < g.OW ? std::clamp<int64_t>(left + tile.slots, 0, g.W) : g.W;
                for (int64_t b = b0; b < b1; b++) {
                    std::fill(scratch, scratch + size, A(0));
                    for (int64_t r = 0; r < s.index.outer; r++) {
                        const int64_t rows = columns.rows(r), first = columns.first(b, r), last = columns.last(b, r);
                        if (first == last) continue;
                        for (int64_t i = 0; i < high; i++)
                            each_step<S, LC / L>(
                                0, wide, [=, &columns](auto regs, int64_t p) __attribute__((always_inline)) {
                                    A* base = scratch + (i * g.SY * tile.slots + p) * LC;
                                    each_step<G, 1>(
                                        0, rows, [=, &columns](auto some, int64_t at) __attribute__((always_inline)) {
                                            constexpr int R = decltype(regs)::value, M = decltype(some)::value;
                                            V<A, L> in[M][R];
                                            const T* from =
                                                dy + (((r * s.h + at) * g.OH + oy + i) * g.OW + ox + p) * N + start;
                                            GS_UNROLL
                                            for (int j = 0; j < M; j++)
                                                load_pixels<A, L, R, LC>(from + j * g.OH * g.OW * N, N, in[j], count);
                                            columns_from_rows<A, L, M, R>(in, base, columns.off, columns.vals + at, s.h,
                                                                          first, last);
                                        });
                                });
                    }
                    const int64_t c0 = b * tile.channels, c1 = std::min(g.C, c0 + tile.channels);
                    for (int64_t c = c0; c < c1; c++)
                        unpack_plane<A, L, LC>(dx + c * g.H * g.W * N, scratch + (c - c0) * columns.plane, g, tile, N,
                                               start, count, top, left, fresh_row, fresh_column, last_row, last_column);
                }
            });
        });
    });
}

// dW at the blocks of an index, kept or not.
template <class A, class T>
void block_weight(const T* dy, const T* x, A* dw, Blocks s, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>, SUMS = std::max(8, L);
    with_lanes<A>(g.OW, N, [&](auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value;
        const Columns<A> columns(s, nullptr, g, LC, sizeof(T), g.C, m);
        const Tile& tile = columns.tile;
        const int64_t across = ceil_div(g.OW, tile.wide), pieces = ceil_div(N, LC),
                      tasks = ceil_div(g.OH, tile.high) * across * pieces;
        const int64_t n = s.index.ptr[s.index.outer], size = n * s.h * s.w;
        static thread_local Scratch partial;
        A* sums_of = partial.get<A>(size * m.threads);
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed, outer;
            T *scratch = packed.get<T>(tile.channels * columns.plane),
              *some_dy = outer.get<T>(4 * tile.high * tile.wide * LC);
            A* mine = sums_of + size * t;
            columns.prepare(t, threads);
            std::fill(mine, mine + size, A(0));
            barrier(threads);
            const Grid grid(threads, tasks);
            const int64_t r0 = share(s.index.ptr, s.index.outer, t / grid.across, grid.down),
                          r1 = share(s.index.ptr, s.index.outer, t / grid.across + 1, grid.down);
            for (int64_t task = tasks * (t % grid.across) / grid.across;
                 task < tasks * (t % grid.across + 1) / grid.across; task++) {
                const int64_t start = task % pieces * LC, count = std::min<int64_t>(LC, N - start);
                const int64_t oy = task / pieces / across * tile.high, ox = task / pieces % across * tile.wide;
                const int64_t high = std::min(tile.high, g.OH - oy), wide = std::min(tile.wide, g.OW - ox);
                for (int64_t b = 0; b < tile.slabs; b++) {
                    columns.template pack<T, LC>(scratch, x, b, oy, ox, N, start, count);
                    for (int64_t r = r0; r < r1; r++) {
                        const int64_t first = columns.first(b, r), last = columns.last(b, r);
                        if (first == last) continue;
                        each_step<4, 1>(0, columns.rows(r), [&](auto some, int64_t at) {
                            constexpr int M = decltype(some)::value, Q = SUMS / M;
                            T* to = some_dy;
                            for (int64_t o = r * s.h + at; o < r * s.h + at + M; o++)
                                for (int64_t i = 0; i < high; i++)
                                    for (int64_t p = 0; p < wide; p++, to += LC)
                                        copy_lanes<T, LC>(to, dy + ((o * g.OH + oy + i) * g.OW + ox + p) * N + start,
                                                          count);
                            for (int64_t f = first; f < last; f += Q) {
                                int32_t off[Q];
                                for (int q = 0; q < Q; q++) off[q] = columns.off[std::min(f + q, last - 1)];
                                alignas(64) A sums[SUMS];
                                dots_of_tile<A, L, M, Q>(some_dy, scratch, off, high, wide * LC, g.SY * tile.slots * LC,
                                                         sums);
                                for (int q = 0; q < Q && f + q < last; q++)
                                    for (int j = 0; j < M; j++) mine[(f + q) * s.h + at + j] += sums[q * M + j];
                            }
                        });
                    }
                }
            }
            barrier(threads);
            for (int64_t k = n * t / threads; k < n * (t + 1) / threads; k++)
                for (int64_t c = 0; c < s.w; c++)
                    for (int64_t j = 0; j < s.h; j++) {
                        A total = 0;
                        for (int a = 0; a < threads; a++) total += sums_of[size * a + (k * s.w + c) * s.h + j];
                        dw[(k * s.h + j) * s.w + c] = total;
                    }
        });
    });
}

}  // namespace gs
