// The products of a sparse matrix in units of h x w tiles, on batch-last images; a linear layer is a 1 x 1 convolution of single pixels.
// Unit row r covers the matrix rows r h + g, g < h. Its units, one after the other, are a list of columns f: each has one offset into the
// packed tile of the image (native.hpp) and h values, one after the other too (they are transposed first if w > 1).
//
//     forward     y[r h + g] += W[f, g] x[off f]              G rows x R vectors of y in registers; a load of x feeds G multiply-adds
//     backward    dx[off f] += sum_g W[f, g] dy[r h + g]      G rows x R vectors of dy in registers; dx is added up in packed form
//                 dW[f, g] += dy[r h + g] . x[off f]          G rows x Q columns of sums in registers, over all pixels of a tile
//
// What of a tile hangs over the edge of the matrix is neither read nor computed with: its gradient is 0.
#pragma once
#include <numeric>

#include "native.hpp"

namespace gs {

struct Units {
    Index s;  // unit rows and unit columns, row order
    int64_t h, w, rows, cols;
};

// f(regs, at): 0 ... count in steps of R / PER, then of half that, and so on.
template <int R, int PER, class F>
GS_INLINE void each_step(int64_t at, int64_t count, F&& f) {
    for (; at + R / PER <= count; at += R / PER) f(Const<R>{}, at);
    if constexpr (R > PER) each_step<R / 2, PER>(at, count, f);
}

// acc[g] += sum_{f in [f, end)} vals[f h + g] base[off[f] ...]
template <class A, int L, int G, int R, class T>
GS_INLINE void rows_from_columns(V<A, L> (&acc)[G][R], const T* base, const int32_t* off, const A* vals, int64_t h, int64_t f, int64_t end) {
    for (; f < end; f++) {
        const A* w = vals + f * h;
        V<A, L> x[R];
        GS_UNROLL
        for (int i = 0; i < R; i++) x[i] = load<A, L>(base + off[f] + i * L), hold<A, L>(x[i]);
        GS_UNROLL
        for (int g = 0; g < G; g++)
            GS_UNROLL
            for (int i = 0; i < R; i++) acc[g][i] += w[g] * x[i];
    }
}

// base[off[f] ...] += sum_g vals[f h + g] dy[g] for f in [f, end)
template <class A, int L, int G, int R>
GS_INLINE void columns_from_rows(const V<A, L> (&dy)[G][R], A* base, const int32_t* off, const A* vals, int64_t h, int64_t f, int64_t end) {
    for (; f < end; f++) {
        const A* w = vals + f * h;
        V<A, L> acc[R];
        GS_UNROLL
        for (int i = 0; i < R; i++) acc[i] = load<A, L>(base + off[f] + i * L);
        GS_UNROLL
        for (int g = 0; g < G; g++)
            GS_UNROLL
            for (int i = 0; i < R; i++) acc[i] += w[g] * dy[g][i];
        GS_UNROLL
        for (int i = 0; i < R; i++) store<A, L>(base + off[f] + i * L, acc[i]);
    }
}

// sums[q G + g] = dy[g] . base[off[q] ...] over `high` rows of `count` numbers; dy is packed, row by row; rows of x lie `pitch` apart.
template <class A, int L, int G, int Q, class T>
GS_INLINE void dots_of_tile(const T* dy, const T* base, const int32_t (&off)[Q], int64_t high, int64_t count, int64_t pitch, A* sums) {
    V<A, L> acc[Q * G] = {};
    const int64_t area = high * count;
    for (int64_t i = 0; i < high; i++, dy += count, base += pitch)
        for (int64_t v = 0; v < count; v += L) {
            V<A, L> x[Q];
            GS_UNROLL
            for (int q = 0; q < Q; q++) x[q] = load<A, L>(base + off[q] + v), hold<A, L>(x[q]);
            GS_UNROLL
            for (int g = 0; g < G; g++) {
                V<A, L> d = load<A, L>(dy + g * area + v);
                hold<A, L>(d);
                GS_UNROLL
                for (int q = 0; q < Q; q++) acc[q * G + g] += d * x[q];
            }
        }
    GS_UNROLL
    for (int j = 0; j < Q * G; j += L) store<A, L>(sums + j, lane_sums<A, L>(acc + j));
}

// f(rows in registers, vectors in registers, lanes for each pixel)
template <class A, class F>
void with_registers(int64_t h, int64_t batch, F&& f) {
    constexpr int L = LANES<A>, S = BYTES < 64 ? 2 : 4;
    auto with_lanes = [&](auto group, auto vectors) {
        if (batch > L) f(group, vectors, Const<2 * L>{});
        else f(group, vectors, Const<L>{});
    };
    if (h >= 4) with_lanes(Const<4>{}, Const<S>{});
    else with_lanes(Const<2>{}, Const<2 * S>{});
}

// A tile of the image, its channels in blocks that hold whole units, and the list of columns with their offsets and values.
template <class A>
struct Columns : Source {
    const Units& u;
    int64_t units;  // unit columns of a block
    int32_t *off, *split;
    const A *values, *vals;

    Columns(const Units& u, const A* values, const Conv& g, int lanes, int64_t bytes, int64_t channels, const Machine& m)
        : Source(g, u.s, lanes, bytes, m), u(u), values(values) {
        static thread_local Scratch tables, offsets, splits, ordered;
        const int64_t n = u.s.ptr[u.s.outer], grain = u.w / std::gcd(u.w, K);  // channels that hold whole units
        const int64_t blocks = std::clamp<int64_t>(n * u.w / (4 * u.s.outer), 1, tile.blocks);  // every row with a few columns in each
        tile.channels = ceil_div(std::min(ceil_div(g.C, blocks), channels), grain) * grain;
        tile.blocks = ceil_div(g.C, tile.channels);
        units = tile.channels * K / u.w;
        table = tables.get<int32_t>(tile.channels * K);
        for (int64_t tap = 0; tap < K; tap++) table[tap] = offset(tap);
        for (int64_t i = K; i < tile.channels * K; i++) table[i] = table[i - K] + int32_t(plane);
        off = offsets.get<int32_t>(n * u.w), split = splits.get<int32_t>((tile.blocks + 1) * u.s.outer);
        vals = values && u.w > 1 ? ordered.get<A>(n * u.h * u.w) : values;
    }

    void prepare(int t, int threads) const {
        const int64_t r0 = share(u.s.ptr, u.s.outer, t, threads), r1 = share(u.s.ptr, u.s.outer, t + 1, threads);
        split_blocks(u.s, tile.blocks, units, r0, r1, split);
        for (int64_t b = 0; b < tile.blocks; b++)
            for (int64_t r = r0; r < r1; r++)
                for (int64_t k = split[b * u.s.outer + r]; k < split[(b + 1) * u.s.outer + r]; k++)
                    for (int64_t c = 0; c < u.w; c++) off[k * u.w + c] = table[(u.s.idx[k] - b * units) * u.w + c];
        if (vals != values)
            for (int64_t k = u.s.ptr[r0]; k < u.s.ptr[r1]; k++)
                for (int64_t c = 0; c < u.w; c++)
                    for (int64_t g = 0; g < u.h; g++) const_cast<A*>(vals)[(k * u.w + c) * u.h + g] = values[(k * u.h + g) * u.w + c];
    }

    int64_t rows(int64_t r) const { return std::min(u.h, u.rows - r * u.h); }
    int64_t first(int64_t b, int64_t r) const { return split[b * u.s.outer + r] * u.w; }
    int64_t last(int64_t b, int64_t r) const {
        const int64_t k = split[(b + 1) * u.s.outer + r];
        const bool empty = k == split[b * u.s.outer + r];
        return k * u.w - (empty ? 0 : std::max<int64_t>(0, (u.s.idx[k - 1] + 1) * u.w - u.cols));
    }

  private:
    int32_t* table;
};

template <class A, class T>
void block_forward(const T* x, const A* values, const A* bias, T* y, Units u, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>;
    with_registers<A>(u.h, N, [&](auto group, auto vectors, auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value, G = decltype(group)::value, S = decltype(vectors)::value;
        const Columns<A> columns(u, values, g, LC, sizeof(T), g.C, m);
        const Tile& tile = columns.tile;
        const int64_t across = ceil_div(g.OW, tile.wide), pieces = ceil_div(N, LC), tasks = ceil_div(g.OH, tile.high) * across * pieces;
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed;
            T* scratch = packed.get<T>(tile.channels * columns.plane);
            columns.prepare(t, threads);
            barrier(threads);
            const Grid grid(threads, tasks);
            const int64_t r0 = share(u.s.ptr, u.s.outer, t / grid.across, grid.down), r1 = share(u.s.ptr, u.s.outer, t / grid.across + 1, grid.down);
            for (int64_t task = tasks * (t % grid.across) / grid.across; task < tasks * (t % grid.across + 1) / grid.across; task++) {
                const int64_t start = task % pieces * LC, count = std::min<int64_t>(LC, N - start);
                const int64_t oy = task / pieces / across * tile.high, ox = task / pieces % across * tile.wide;
                const int64_t high = std::min(tile.high, g.OH - oy), wide = std::min(tile.wide, g.OW - ox);
                for (int64_t b = 0; b < tile.blocks; b++) {
                    columns.template pack<T, LC>(scratch, x, b, oy, ox, N, start, count);
                    for (int64_t r = r0; r < r1; r++) {
                        const int64_t rows = columns.rows(r), first = columns.first(b, r), last = columns.last(b, r);
                        if (b && first == last) continue;
                        for (int64_t i = 0; i < high; i++)
                            each_step<S, LC / L>(0, wide, [=, &columns](auto regs, int64_t p) __attribute__((always_inline)) {
                                const T* base = scratch + (i * g.SY * tile.slots + p) * LC;
                                each_step<G, 1>(0, rows, [=, &columns](auto some, int64_t at) __attribute__((always_inline)) {
                                    constexpr int R = decltype(regs)::value, M = decltype(some)::value;
                                    V<A, L> acc[M][R];
                                    const int64_t o = r * u.h + at, step = g.OH * g.OW * N;
                                    T* to = y + ((o * g.OH + oy + i) * g.OW + ox + p) * N + start;
                                    GS_UNROLL
                                    for (int j = 0; j < M; j++) {
                                        if (b) load_pixels<A, L, R, LC>(to + j * step, N, acc[j], count);
                                        else
                                            for (auto& a : acc[j]) a = splat<A, L>(bias ? bias[o + j] : A(0));
                                    }
                                    rows_from_columns<A, L, M, R>(acc, base, columns.off, columns.vals + at, u.h, first, last);
                                    GS_UNROLL
                                    for (int j = 0; j < M; j++) store_pixels<A, L, R, LC>(to + j * step, N, acc[j], count);
                                });
                            });
                    }
                }
            }
        });
    });
}

// A packed plane of dx goes to the image: what lies below fresh_row or left of fresh_column holds the sums of other tiles and is added to,
// all else up to last_row and last_column is written.
template <class A, int L, int LC, class T>
void unpack_plane(T* plane, const A* in, const Conv& g, const Tile& tile, int64_t N, int64_t start, int64_t count, int64_t top, int64_t left,
                  int64_t fresh_row, int64_t fresh_column, int64_t last_row, int64_t last_column) {
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

// Each thread has lanes and channels of its own and takes the tiles of the image in order, so that none adds to what another writes.
template <class A, class T>
void block_input(const T* dy, const A* values, T* dx, Units u, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>;
    with_registers<A>(u.h, N, [&](auto group, auto vectors, auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value, G = decltype(group)::value, S = decltype(vectors)::value;
        const int64_t pieces = ceil_div(N, LC);
        const Columns<A> columns(u, values, g, LC, sizeof(A), ceil_div(g.C, Grid(m.threads, pieces).down), m);
        const Tile& tile = columns.tile;
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed;
            const int64_t size = tile.channels * columns.plane;
            A* scratch = packed.get<A>(size);
            columns.prepare(t, threads);
            barrier(threads);
            const Grid grid(threads, pieces);
            const int64_t b0 = tile.blocks * (t / grid.across) / grid.down, b1 = tile.blocks * (t / grid.across + 1) / grid.down;
            auto each_tile = [&](auto&& f) {
                for (int64_t piece = pieces * (t % grid.across) / grid.across; piece < pieces * (t % grid.across + 1) / grid.across; piece++)
                    for (int64_t oy = 0; oy < g.OH; oy += tile.high)
                        for (int64_t ox = 0; ox < g.OW; ox += tile.wide) f(piece * LC, std::min<int64_t>(LC, N - piece * LC), oy, ox);
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
                    for (int64_t r = 0; r < u.s.outer; r++) {
                        const int64_t rows = columns.rows(r), first = columns.first(b, r), last = columns.last(b, r);
                        if (first == last) continue;
                        for (int64_t i = 0; i < high; i++)
                            each_step<S, LC / L>(0, wide, [=, &columns](auto regs, int64_t p) __attribute__((always_inline)) {
                                A* base = scratch + (i * g.SY * tile.slots + p) * LC;
                                each_step<G, 1>(0, rows, [=, &columns](auto some, int64_t at) __attribute__((always_inline)) {
                                    constexpr int R = decltype(regs)::value, M = decltype(some)::value;
                                    V<A, L> in[M][R];
                                    const T* from = dy + (((r * u.h + at) * g.OH + oy + i) * g.OW + ox + p) * N + start;
                                    GS_UNROLL
                                    for (int j = 0; j < M; j++) load_pixels<A, L, R, LC>(from + j * g.OH * g.OW * N, N, in[j], count);
                                    columns_from_rows<A, L, M, R>(in, base, columns.off, columns.vals + at, u.h, first, last);
                                });
                            });
                    }
                    const int64_t c0 = b * tile.channels, c1 = std::min(g.C, c0 + tile.channels);
                    for (int64_t c = c0; c < c1; c++)
                        unpack_plane<A, L, LC>(dx + c * g.H * g.W * N, scratch + (c - c0) * columns.plane, g, tile, N, start, count, top, left,
                                               fresh_row, fresh_column, last_row, last_column);
                }
            });
        });
    });
}

// dW at the units of an index, kept or not.
template <class A, class T>
void block_weight(const T* dy, const T* x, A* dw, Units u, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>, SUMS = std::max(8, L);
    with_lanes<A>(g.OW, N, [&](auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value;
        const Columns<A> columns(u, nullptr, g, LC, sizeof(T), g.C, m);
        const Tile& tile = columns.tile;
        const int64_t across = ceil_div(g.OW, tile.wide), pieces = ceil_div(N, LC), tasks = ceil_div(g.OH, tile.high) * across * pieces;
        const int64_t n = u.s.ptr[u.s.outer], size = n * u.h * u.w;
        static thread_local Scratch partial;
        A* sums_of = partial.get<A>(size * m.threads);
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed, outer;
            T *scratch = packed.get<T>(tile.channels * columns.plane), *some_dy = outer.get<T>(4 * tile.high * tile.wide * LC);
            A* mine = sums_of + size * t;
            columns.prepare(t, threads);
            std::fill(mine, mine + size, A(0));
            barrier(threads);
            const Grid grid(threads, tasks);
            const int64_t r0 = share(u.s.ptr, u.s.outer, t / grid.across, grid.down), r1 = share(u.s.ptr, u.s.outer, t / grid.across + 1, grid.down);
            for (int64_t task = tasks * (t % grid.across) / grid.across; task < tasks * (t % grid.across + 1) / grid.across; task++) {
                const int64_t start = task % pieces * LC, count = std::min<int64_t>(LC, N - start);
                const int64_t oy = task / pieces / across * tile.high, ox = task / pieces % across * tile.wide;
                const int64_t high = std::min(tile.high, g.OH - oy), wide = std::min(tile.wide, g.OW - ox);
                for (int64_t b = 0; b < tile.blocks; b++) {
                    columns.template pack<T, LC>(scratch, x, b, oy, ox, N, start, count);
                    for (int64_t r = r0; r < r1; r++) {
                        const int64_t first = columns.first(b, r), last = columns.last(b, r);
                        if (first == last) continue;
                        each_step<4, 1>(0, columns.rows(r), [&](auto some, int64_t at) {
                            constexpr int M = decltype(some)::value, Q = SUMS / M;
                            T* to = some_dy;
                            for (int64_t o = r * u.h + at; o < r * u.h + at + M; o++)
                                for (int64_t i = 0; i < high; i++)
                                    for (int64_t p = 0; p < wide; p++, to += LC)
                                        copy_lanes<T, LC>(to, dy + ((o * g.OH + oy + i) * g.OW + ox + p) * N + start, count);
                            for (int64_t f = first; f < last; f += Q) {
                                int32_t off[Q];
                                for (int q = 0; q < Q; q++) off[q] = columns.off[std::min(f + q, last - 1)];
                                alignas(64) A sums[SUMS];
                                dots_of_tile<A, L, M, Q>(some_dy, scratch, off, high, wide * LC, g.SY * tile.slots * LC, sums);
                                for (int q = 0; q < Q && f + q < last; q++)
                                    for (int j = 0; j < M; j++) mine[(f + q) * u.h + at + j] += sums[q * M + j];
                            }
                        });
                    }
                }
            }
            barrier(threads);
            for (int64_t k = n * t / threads; k < n * (t + 1) / threads; k++)
                for (int64_t c = 0; c < u.w; c++)
                    for (int64_t j = 0; j < u.h; j++) {
                        A total = 0;
                        for (int a = 0; a < threads; a++) total += sums_of[size * a + (k * u.w + c) * u.h + j];
                        dw[(k * u.h + j) * u.w + c] = total;
                    }
        });
    });
}

}  // namespace gs
