// The products of a sparse convolution on batch-last images: channel c, row i, column j of sample b lie at
// ((c * H + i) * W + j) * N + b.
//
//     forward     y[o, p]  = bias[o] + sum_{(c, k) in S_o} W[o, c, k] x[c, stride p + dilation k - padding]
//     backward    dx[c, p] = sum_{(o, k)} W[o, c, k] dy[o, (p + padding - dilation k) / stride]   where it is whole
//                 dW[o, c, k] = sum_p dy[o, (p + padding - dilation k) / stride] . x[c, p]
//
// Both take a tile of the image (tile.hpp) for a few lanes of the batch. In the packed tile every non-zero is one fixed
// offset. So the inner loops are those of the linear kernels, over R contiguous vectors of pixels and lanes. The
// backward pass takes the pixels of dx by their remainders modulo the stride, since a kernel tap serves just one of
// them. It uses each load of dy for dx and for dW.
#pragma once
#include "tile.hpp"

namespace gs {

// The forward pass has one level more. Where rows hold enough entries, the channels are cut once more, into slabs whose
// part of a piece of pixels fits the first cache, and all rows run over one such slab before the next. Entries then lie
// slab by slab.
template <class A, class T>
void conv_forward(const T* x, const A* values, const A* bias, T* y, Index s, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>;
    with_lanes<A>(g.OW, N, [&](auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value;
        Source source(g, s, LC, sizeof(T), m);
        Tile& tile = source.tile;
        const int64_t n = s.ptr[s.outer], near = g.KH * (8 * L / LC + g.KW - 1) * LC *
                                                 int64_t(sizeof(T));  // bytes of a channel for a piece
        int64_t parts = ceil_div(tile.channels * near, FIRST_CACHE);
        if (n < 5 * g.O * parts * tile.slabs) parts = 1;
        const int64_t each = ceil_div(tile.channels, parts);
        tile.channels = each * parts, tile.slabs = ceil_div(g.C, tile.channels);
        const int64_t across = ceil_div(g.OW, tile.wide), pieces = ceil_div(N, LC),
                      tasks = ceil_div(g.OH, tile.high) * across * pieces;
        const int64_t all = tile.slabs * parts;
        static thread_local Scratch offsets, splits, begins, ordered;
        int32_t *off = offsets.get<int32_t>(n), *split = splits.get<int32_t>((all + 1) * s.outer),
                *begin = begins.get<int32_t>(all * s.outer + 1);
        A* vals = ordered.get<A>(n);
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed, sums;
            T* scratch = packed.get<T>(tile.channels * source.plane);
            A* acc_of = sums.get<A>(g.O * 8 * L);
            const int64_t o0 = s.outer * t / threads, o1 = s.outer * (t + 1) / threads;
            split_slabs(s, all, each * source.K, o0, o1, split);
            barrier(threads);
            if (t == 0) {
                begin[0] = 0;
                for (int64_t i = 0; i < all * s.outer; i++) begin[i + 1] = begin[i] + split[i + s.outer] - split[i];
            }
            barrier(threads);
            for (int64_t b = 0; b < all; b++)
                for (int64_t o = o0; o < o1; o++) {
                    const int64_t from = split[b * s.outer + o], count = split[(b + 1) * s.outer + o] - from,
                                  to = begin[b * s.outer + o];
                    for (int64_t k = 0; k < count; k++)
                        off[to + k] = source.offset(s.idx[from + k]), vals[to + k] = values[from + k];
                }
            barrier(threads);
            for (int64_t task = tasks * t / threads; task < tasks * (t + 1) / threads; task++) {
                const int64_t start = task % pieces * LC, count = std::min<int64_t>(LC, N - start);
                const int64_t oy = task / pieces / across * tile.high, ox = task / pieces % across * tile.wide;
                const int64_t high = std::min(tile.high, g.OH - oy), wide = std::min(tile.wide, g.OW - ox);
                for (int64_t b = 0; b < tile.slabs; b++) {
                    source.pack<T, LC>(scratch, x, b, oy, ox, N, start, count);
                    const int32_t* from = begin + b * parts * s.outer;
                    auto row_of = [=](int64_t o, int64_t i) {
                        return y + (((o * g.OH + oy + i) * g.OW) + ox) * N + start;
                    };
                    auto level = [=](int64_t o) { return splat<A, L>(bias ? bias[o] : A(0)); };
                    if (parts == 1) {
                        for (int64_t o = 0; o < g.O; o++)
                            for (int64_t i = 0; i < high; i++) {
                                const T* base = scratch + i * g.SY * tile.slots * LC;
                                T* row = row_of(o, i);
                                const int64_t k0 = from[o], k1 = from[o + 1];
                                const V<A, L> zero = level(o);
                                each_piece<LC / L>(wide, [=](auto regs, int64_t p) __attribute__((always_inline)) {
                                    constexpr int R = decltype(regs)::value;
                                    V<A, L> acc[R];
                                    soon_pixels<L, R, LC, true>(row + p * N, N);
                                    if (b) load_pixels<A, L, R, LC>(row + p * N, N, acc, count);
                                    else
                                        for (auto& a : acc) a = zero;
                                    axpy<A, L, R>(acc, base + p * LC, 1, off, vals, k0, k1, 0);
                                    store_pixels<A, L, R, LC>(row + p * N, N, acc, count);
                                });
                            }
                        continue;
                    }
                    for (int64_t i = 0; i < high; i++)
                        each_piece<LC / L>(wide, [=](auto regs, int64_t p) __attribute__((always_inline)) {
                            constexpr int R = decltype(regs)::value;
                            const T* base = scratch + i * g.SY * tile.slots * LC + p * LC;
                            for (int64_t part = 0; part < parts; part++)
                                for (int64_t o = 0; o < g.O; o++) {
                                    V<A, L> acc[R];
                                    A* kept = acc_of + o * R * L;
                                    T* to = row_of(o, i) + p * N;
                                    if (part + 1 == parts) soon_pixels<L, R, LC, true>(to, N);
                                    if (part) {
                                        GS_UNROLL
                                        for (int r = 0; r < R; r++) acc[r] = load<A, L>(kept + r * L);
                                    } else if (b) {
                                        load_pixels<A, L, R, LC>(to, N, acc, count);
                                    } else {
                                        for (auto& a : acc) a = level(o);
                                    }
                                    const int32_t* k = from + part * s.outer + o;
                                    axpy<A, L, R>(acc, base, 1, off, vals, k[0], k[1], 0);
                                    if (part + 1 < parts) {
                                        GS_UNROLL
                                        for (int r = 0; r < R; r++) store<A, L>(kept + r * L, acc[r]);
                                    } else {
                                        store_pixels<A, L, R, LC>(to, N, acc, count);
                                    }
                                }
                        });
                }
            }
        });
    });
}

// dW at the entries of an index in row order, kept or not: sensing, and layers whose input needs no gradient.
template <class A, class T>
void conv_weight(const T* dy, const T* x, A* dw, Index s, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>;
    with_lanes<A>(g.OW, N, [&](auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value;
        const Source source(g, s, LC, sizeof(T), m);
        const Tile& tile = source.tile;
        const int64_t n = s.ptr[s.outer], across = ceil_div(g.OW, tile.wide), pieces = ceil_div(N, LC);
        const int64_t tasks = ceil_div(g.OH, tile.high) * across * pieces;
        static thread_local Scratch offsets, splits, partial;
        int32_t *off = offsets.get<int32_t>(n), *split = splits.get<int32_t>((tile.slabs + 1) * s.outer);
        A* sums_of = partial.get<A>(n * m.threads);
        int64_t most = 0;
        for (int64_t o = 0; o < g.O; o++) most = std::max<int64_t>(most, s.ptr[o + 1] - s.ptr[o]);
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed, held, summed;
            T* scratch = packed.get<T>(tile.channels * source.plane);
            A *dots = held.get<A>((most + L) * L), *sums = summed.get<A>(most + L), *mine = sums_of + n * t;
            source.prepare(s, s.outer * t / threads, s.outer * (t + 1) / threads, off, split);
            std::fill(mine, mine + n, A(0));
            barrier(threads);
            for (int64_t task = tasks * t / threads; task < tasks * (t + 1) / threads; task++) {
                const int64_t start = task % pieces * LC, count = std::min<int64_t>(LC, N - start);
                const int64_t oy = task / pieces / across * tile.high, ox = task / pieces % across * tile.wide;
                const int64_t high = std::min(tile.high, g.OH - oy), wide = std::min(tile.wide, g.OW - ox);
                for (int64_t b = 0; b < tile.slabs; b++) {
                    source.pack<T, LC>(scratch, x, b, oy, ox, N, start, count);
                    const int32_t* from = split + b * s.outer;
                    for (int64_t o = 0; o < g.O; o++) {
                        const int64_t k0 = from[o], k1 = from[s.outer + o];
                        std::memset(dots, 0, (ceil_div(k1 - k0, L) * L) * L * sizeof(A));
                        for (int64_t i = 0; i < high; i++) {
                            const T* base = scratch + i * g.SY * tile.slots * LC;
                            const T* row = dy + (((o * g.OH + oy + i) * g.OW) + ox) * N + start;
                            each_piece<LC / L>(wide, [=](auto regs, int64_t p) __attribute__((always_inline)) {
                                constexpr int R = decltype(regs)::value;
                                V<A, L> none[R], in[R];
                                load_pixels<A, L, R, LC>(row + p * N, N, in, count);
                                axpy_dots<A, L, R, false, true>(none, in, base + p * LC, 1, off, (const A*)nullptr, k0,
                                                                k1, dots, 0);
                            });
                        }
                        reduce_dots<A, L>(dots, k1 - k0, sums);
                        for (int64_t k = k0; k < k1; k++) mine[k] += sums[k - k0];
                    }
                }
            }
            barrier(threads);
            for (int64_t k = n * t / threads; k < n * (t + 1) / threads; k++) {
                A total = 0;
                for (int a = 0; a < threads; a++) total += sums_of[n * a + k];
                dw[k] = total;
            }
        });
    });
}

// dx; dw may be null. s is in column order: outer = C KH KW, inner = O. Entries are taken slab by slab of output
// channels, in a slab channel by channel, remainder by remainder.
template <class A, class T>
void conv_backward(const T* dy, const T* x, const A* values, T* dx, A* dw, Index s, Conv g, int64_t N, Machine m) {
    constexpr int L = LANES<A>;
    const int64_t GH = ceil_div(g.H, g.SY), GW = ceil_div(g.W, g.SX);  // pixels of one remainder, at most
    const int64_t low_y = floor_div(g.PY - (g.KH - 1) * g.DY, g.SY), high_y = floor_div(g.SY - 1 + g.PY, g.SY);
    const int64_t low_x = floor_div(g.PX - (g.KW - 1) * g.DX, g.SX), high_x = floor_div(g.SX - 1 + g.PX, g.SX);
    with_lanes<A>(GW, N, [&](auto lanes_each) {
        constexpr int LC = decltype(lanes_each)::value;
        auto rows = [&](int64_t h) { return h + high_y - low_y; };
        auto slots = [&](int64_t w) { return w + high_x - low_x; };
        const int64_t K = g.KH * g.KW, phases = g.SY * g.SX, n = s.ptr[s.outer], step = g.SX * N;
        const Tile tile =
            best_tile(GH, GW, g.O, g.C * phases, LC * sizeof(T), budget_of(m), std::max(1, 8 * L / LC), rows, slots);
        const int64_t plane = tile.rows * tile.slots * LC, segments = tile.slabs * g.C * phases;
        const int64_t across = ceil_div(GW, tile.wide), pieces = ceil_div(N, LC),
                      tasks = ceil_div(GH, tile.high) * across * pieces;
        static thread_local Scratch offsets, splits, begins, ordered, places, partial, taps;
        int32_t *off = offsets.get<int32_t>(n), *split = splits.get<int32_t>((tile.slabs + 1) * s.outer);
        int32_t *begin = begins.get<int32_t>(segments + 1), *place = places.get<int32_t>(n),
                *phase_of = taps.get<int32_t>(2 * K);
        A *vals = ordered.get<A>(n), *sums_of = dw ? partial.get<A>(n * m.threads) : nullptr;
        for (int64_t tap = 0; tap < K; tap++) {  // the remainder that a tap serves, and how far it sees dy moved there
            const int64_t ky = g.PY - tap / g.KW * g.DY, kx = g.PX - tap % g.KW * g.DX;
            const int64_t up = -floor_div(-ky, g.SY), side = -floor_div(-kx, g.SX);
            phase_of[tap] = int32_t((up * g.SY - ky) * g.SX + side * g.SX - kx);
            phase_of[K + tap] = int32_t(((up - low_y) * tile.slots + side - low_x) * LC);
        }
        int64_t most = 0;
        for (int64_t c = 0; c < g.C; c++) most = std::max<int64_t>(most, s.ptr[(c + 1) * K] - s.ptr[c * K]);
        parallel(m.threads, [&](int t, int threads) {
            static thread_local Scratch packed, held, summed;
            T* scratch = packed.get<T>(tile.channels * plane);
            A *dots = held.get<A>((most + L) * L), *sums = summed.get<A>(most + L),
              *mine = dw ? sums_of + n * t : nullptr;
            const int64_t first = g.C * t / threads, last = g.C * (t + 1) / threads;
            split_slabs(s, tile.slabs, tile.channels, first * K, last * K, split);
            auto each_run = [&](int64_t b, int64_t c, int64_t phase, auto&& f) {  // f(tap, first, last entry)
                for (int64_t tap = 0; tap < K; tap++)
                    if (phase_of[tap] == phase)
                        f(tap, split[b * s.outer + c * K + tap], split[(b + 1) * s.outer + c * K + tap]);
            };
            for (int64_t b = 0; b < tile.slabs; b++)
                for (int64_t c = first; c < last; c++)
                    for (int64_t phase = 0; phase < phases; phase++) {
                        int32_t count = 0;
                        each_run(b, c, phase, [&](int64_t, int32_t from, int32_t upto) { count += upto - from; });
                        begin[(b * g.C + c) * phases + phase + 1] = count;
                    }
            barrier(threads);
            if (t == 0) {
                begin[0] = 0;
                for (int64_t i = 0; i < segments; i++) begin[i + 1] += begin[i];
            }
            barrier(threads);
            for (int64_t b = 0; b < tile.slabs; b++)
                for (int64_t c = first; c < last; c++)
                    for (int64_t phase = 0; phase < phases; phase++) {
                        int64_t to = begin[(b * g.C + c) * phases + phase];
                        each_run(b, c, phase, [&](int64_t tap, int32_t from, int32_t upto) {
                            for (int64_t k = from; k < upto; k++, to++) {
                                off[to] = int32_t(s.idx[k] % tile.channels * plane + phase_of[K + tap]);
                                place[to] = s.perm[k], vals[to] = values[s.perm[k]];
                            }
                        });
                    }
            if (dw) std::fill(mine, mine + n, A(0));
            barrier(threads);
            for (int64_t task = tasks * t / threads; task < tasks * (t + 1) / threads; task++) {
                const int64_t start = task % pieces * LC, count = std::min<int64_t>(LC, N - start);
                const int64_t iy = task / pieces / across * tile.high, ix = task / pieces % across * tile.wide;
                for (int64_t b = 0; b < tile.slabs; b++) {
                    const int64_t o0 = b * tile.channels, o1 = std::min(g.O, o0 + tile.channels);
                    for (int64_t o = o0; o < o1; o++)
                        pack_plane<T, LC>(scratch + (o - o0) * plane, dy + o * g.OH * g.OW * N, g.OH, g.OW, N,
                                          iy + low_y, ix + low_x, tile.rows, tile.slots, 1, start, count);
                    for (int64_t segment = b * g.C * phases; segment < (b + 1) * g.C * phases; segment++) {
                        const int64_t c = segment / phases % g.C, fy = segment % phases / g.SX, fx = segment % g.SX;
                        const int64_t k0 = begin[segment], k1 = begin[segment + 1];
                        const int64_t high = std::min(tile.high, ceil_div(g.H - fy, g.SY) - iy);
                        const int64_t wide = std::min(tile.wide, ceil_div(g.W - fx, g.SX) - ix);
                        if ((k0 == k1 && b) || high <= 0 || wide <= 0) continue;
                        if (dw) std::memset(dots, 0, ceil_div(k1 - k0, L) * L * L * sizeof(A));
                        for (int64_t i = 0; i < high; i++) {
                            const T* base = scratch + i * tile.slots * LC;
                            const int64_t at = ((c * g.H + (iy + i) * g.SY + fy) * g.W + ix * g.SX + fx) * N + start;
                            each_piece<LC / L>(wide, [=](auto regs, int64_t p) __attribute__((always_inline)) {
                                constexpr int R = decltype(regs)::value;
                                V<A, L> acc[R], in[R];
                                T* to = dx + at + p * step;
                                soon_pixels<L, R, LC, true>(to, step);
                                if (b) load_pixels<A, L, R, LC>(to, step, acc, count);
                                else
                                    for (auto& a : acc) a = V<A, L>{};
                                if (dw) {
                                    soon_pixels<L, R, LC, false>(x + at + p * step + g.H * g.W * N,
                                                                 step);  // the next channel's
                                    load_pixels<A, L, R, LC>(x + at + p * step, step, in, count);
                                    axpy_dots<A, L, R, true, true>(acc, in, base + p * LC, 1, off, vals, k0, k1, dots,
                                                                   0);
                                } else {
                                    axpy<A, L, R>(acc, base + p * LC, 1, off, vals, k0, k1, 0);
                                }
                                store_pixels<A, L, R, LC>(to, step, acc, count);
                            });
                        }
                        if (dw) {
                            reduce_dots<A, L>(dots, k1 - k0, sums);
                            for (int64_t k = k0; k < k1; k++) mine[k] += sums[k - k0];
                        }
                    }
                }
            }
            if (dw) {
                barrier(threads);
                for (int64_t k = n * t / threads; k < n * (t + 1) / threads; k++) {
                    A total = 0;
                    for (int a = 0; a < threads; a++) total += sums_of[n * a + k];
                    dw[place[k]] = total;
                }
            }
        });
    });
}

}  // namespace gs
