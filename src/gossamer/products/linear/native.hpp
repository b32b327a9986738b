// The products of a sparse layer on batch-last matrices: feature f of sample b lies at [f * ld + b].
//
//     forward     y[i]  = bias[i] + sum_{j in S_i} W[i, j] x[j]                            rows i, in row order
//     backward    dx[j] = sum_{i : j in S_i} W[i, j] dy[i];   dW[i, j] = dy[i] . x[j]      columns j, in column order
//
// Both hold R vectors of the batch in registers and run down the non-zeros of a row or column: one broadcast, then a
// load and an FMA per vector. The backward pass uses each load of dy twice, for dx and for dW. Where the vectors of x
// (or dy) of one piece of the batch outgrow the second cache, they are taken a slab of rows at a time; each slab is
// packed, so that its rows are contiguous.
#pragma once
#include "../../_backend/index/native.hpp"
#include "../../_backend/native/parallel.hpp"
#include "../../_backend/native/vec.hpp"

namespace gs {

inline constexpr int SEGMENT = 128;  // entries of a column whose gradients are summed up together
inline constexpr int NEXT = 3;       // rows by which results and held operands are prefetched
inline constexpr int AHEAD = 16;     // entries by which the gathered vectors are prefetched where they lie far away

// acc[i] += sum_{k in [k, end)} vals[k] * base[idx[k] * stride + i L]
template <class A, int L, int R, class T>
GS_INLINE void axpy(V<A, L> (&acc)[R], const T* base, int64_t stride, const int32_t* idx, const A* vals, int64_t k,
                    int64_t end, int64_t far) {
    for (; k < end; k++) {
        const T* p = base + idx[k] * stride;
        if (k + AHEAD < far) __builtin_prefetch(base + idx[k + AHEAD] * stride);
        A w = vals[k];
        GS_UNROLL
        for (int i = 0; i < R; i++) acc[i] += w * load<A, L>(p + i * L);
    }
}

// Entries [k, end) of the backward pass, d = base[idx[k] * stride + ...]: acc[i] += vals[k] d[i], and the vector sum_i
// x[i] d[i], whose lanes add up to the entry's gradient, goes to dots[k - first], added or written: both gradients for
// one load.
template <class A, int L, int R, bool DX, bool ADD, class T>
GS_INLINE void axpy_dots(V<A, L> (&acc)[R], const V<A, L> (&x)[R], const T* base, int64_t stride, const int32_t* idx,
                         const A* vals, int64_t k, int64_t end, A* dots, int64_t far) {
    for (; k < end; k++, dots += L) {
        const T* p = base + idx[k] * stride;
        if (k + AHEAD < far) __builtin_prefetch(base + idx[k + AHEAD] * stride);
        V<A, L> w = splat<A, L>(DX ? vals[k] : A(0)), even = ADD ? load<A, L>(dots) : V<A, L>{}, odd{};
        GS_UNROLL
        for (int i = 0; i < R; i++) {
            V<A, L> d = load<A, L>(p + i * L);
            hold<A, L>(d);
            if (DX) acc[i] += w * d;
            if (i % 2) odd += d * x[i];
            else even += d * x[i];
        }
        store<A, L>(dots, R > 1 ? even + odd : even);
    }
}

template <class A, int L, int R>
void clear_lanes(V<A, L> (&x)[R], int64_t count) {
    A lanes[L * R];
    std::memcpy(lanes, x, sizeof lanes);
    std::fill(lanes, lanes + count, A(0));
    std::memcpy(x, lanes, sizeof lanes);
}

// out[j] = the sum of the lanes of dots[j], for j < count; both have room for a multiple of L.
template <class A, int L>
GS_INLINE void reduce_dots(const A* dots, int64_t count, A* out) {
    for (int64_t j = 0; j < count; j += L) {
        V<A, L> v[L];
        GS_UNROLL
        for (int i = 0; i < L; i++) v[i] = load<A, L>(dots + (j + i) * L);
        store<A, L>(out + j, lane_sums<A, L>(v));
    }
}

// Prefetches the lines of W numbers at p into the first cache or (NEAR = 2) the second. For rows that lie too far apart
// for the machine's own prefetcher. Addresses beyond the end of an array do no harm.
template <int W, bool WRITE, int NEAR = 3, class T>
GS_INLINE void soon(const T* p) {
    GS_UNROLL
    for (int64_t i = 0; i < int64_t(W * sizeof(T)); i += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(p) + i, WRITE, NEAR);
}

// Rows of `inner` in one slab: all, or as many as half of the second cache holds if each row or column has some entries
// in each slab.
template <class T>
int64_t slab_rows(const Index& s, int64_t width, const Machine& m) {
    int64_t fits = std::max<int64_t>(64, m.cache * 5 / 8 / (width * int64_t(sizeof(T))));
    if (s.inner <= fits) return s.inner;
    int64_t count = (s.inner + fits - 1) / fits, each = (s.inner + count - 1) / count;
    return s.ptr[s.outer] / count >= 12 * s.outer ? each : s.inner;
}

// The end of the entries of a row, from k on, that lie before `last`; remembered where the next slab begins.
GS_INLINE int64_t upto(const Index& s, int32_t* cursor, int64_t k, int64_t end, int64_t last) {
    if (!cursor) return end;
    while (k < end && s.idx[k] < last) k++;
    *cursor = int32_t(k);
    return k;
}

// A contiguous copy of columns [start, start + width) of rows [first, last).
template <class T>
const T* pack(Scratch& scratch, const T* x, int64_t ld, int64_t first, int64_t last, int64_t start, int64_t width) {
    T* out = scratch.get<T>((last - first) * width);
    for (int64_t r = first; r < last; r++)
        std::memcpy(out + (r - first) * width, x + r * ld + start, width * sizeof(T));
    return out - first * width;
}

// How one thread takes its rows of one piece of the batch: packed in slabs, or in place.
template <class T>
struct Slabs {
    bool packs;
    int64_t far;  // where the gathered vectors lie far away, the entries before which they are prefetched
    int64_t each;
    int32_t* cursor;
    Slabs(Scratch& cursors, const Index& s, int64_t first, int64_t last, int64_t ld, int64_t width, const Machine& m) {
        packs = ld > width && s.ptr[last] - s.ptr[first] >= 4 * s.inner;
        far = !packs && s.inner * width * int64_t(sizeof(T)) > 2 * m.cache ? s.ptr[last] : 0;
        each = packs ? slab_rows<T>(s, width, m) : s.inner;
        cursor = each < s.inner ? cursors.get<int32_t>(last - first) : nullptr;
        if (cursor) std::copy(s.ptr + first, s.ptr + last, cursor);
    }
};

template <class A, class T>
void linear_forward(const T* x, int64_t ldx, const A* values, const A* bias, T* y, int64_t ldy, Index s, int64_t batch,
                    Machine m) {
    const int64_t pieces = count_chunks<A>(batch);
    parallel(m.threads, [&](int t, int threads) {
        static thread_local Scratch packed, cursors;
        Grid grid(threads, pieces);
        const int64_t r0 = share(s.ptr, s.outer, t / grid.across, grid.down),
                      r1 = share(s.ptr, s.outer, t / grid.across + 1, grid.down);
        int64_t piece = 0;
        each_chunk<A>(batch, [&](auto lanes, auto regs, int64_t start, int64_t) {
            constexpr int L = decltype(lanes)::value, R = decltype(regs)::value, W = L * R;
            if (piece++ * grid.across / pieces != t % grid.across) return;
            Slabs<T> slabs(cursors, s, r0, r1, ldx, W, m);
            int64_t first = 0;
            do {
                const int64_t last = std::min(first + slabs.each, s.inner), stride = slabs.packs ? W : ldx;
                const T* base = slabs.packs ? pack(packed, x, ldx, first, last, start, W) : x + start;
                for (int64_t r = r0; r < r1; r++) {
                    if (r + NEXT < r1) soon<W, true>(y + (r + NEXT) * ldy + start);
                    V<A, L> acc[R];
                    GS_UNROLL
                    for (int i = 0; i < R; i++)
                        acc[i] = first ? load<A, L>(y + r * ldy + start + i * L) : splat<A, L>(bias ? bias[r] : A(0));
                    int64_t k = slabs.cursor ? slabs.cursor[r - r0] : s.ptr[r];
                    int64_t end = upto(s, slabs.cursor ? &slabs.cursor[r - r0] : nullptr, k, s.ptr[r + 1], last);
                    axpy<A, L, R>(acc, base, stride, s.idx, values, k, end, slabs.far);
                    GS_UNROLL
                    for (int i = 0; i < R; i++) store<A, L>(y + r * ldy + start + i * L, acc[i]);
                }
                first = last;
            } while (first < s.inner);
        });
    });
}

// dx and dw may be null. s is in column order: outer = columns, inner = rows.
template <class A, class T>
void linear_backward(const T* dy, int64_t ldy, const T* x, int64_t ldx, const A* values, T* dx, int64_t lddx, A* dw,
                     Index s, int64_t batch, Machine m) {
    static thread_local Scratch ordered, partial;  // of the calling thread
    const int64_t n = s.ptr[s.outer], pieces = count_chunks<A>(batch);
    A* vals = dx ? ordered.get<A>(n) : nullptr;
    const bool direct = pieces == 1;  // else dW is summed in column order, one copy for each thread across
    A* sums_of = dw && !direct ? partial.get<A>(n * std::min<int64_t>(m.threads, pieces))
                               : nullptr;  // fewer threads may come than asked for
    parallel(m.threads, [&](int t, int threads) {
        static thread_local Scratch packed, cursors;
        Grid grid(threads, pieces);
        const int64_t c0 = share(s.ptr, s.outer, t / grid.across, grid.down),
                      c1 = share(s.ptr, s.outer, t / grid.across + 1, grid.down);
        const int64_t k0 = n * t / threads, k1 = n * (t + 1) / threads;
        if (dx) {
            for (int64_t k = k0; k < k1; k++) {
                if (k + 2 * AHEAD < k1) __builtin_prefetch(values + s.perm[k + 2 * AHEAD]);
                vals[k] = values[s.perm[k]];
            }
            barrier(threads);
        }
        A* to = dw && !direct ? sums_of + n * (t % grid.across) : dw;
        bool add = false;
        int64_t piece = 0;
        each_chunk<A>(batch, [&](auto lanes, auto regs, int64_t start, int64_t skip) {
            constexpr int L = decltype(lanes)::value, R = decltype(regs)::value, W = L * R;
            if (piece++ * grid.across / pieces != t % grid.across) return;
            Slabs<T> slabs(cursors, s, c0, c1, ldy, W, m);
            alignas(64) A dots[SEGMENT * L], sums[SEGMENT];
            int64_t first = 0;
            do {
                const int64_t last = std::min(first + slabs.each, s.inner), stride = slabs.packs ? W : ldy;
                const T* base = slabs.packs ? pack(packed, dy, ldy, first, last, start, W) : dy + start;
                for (int64_t c = c0; c < c1; c++) {
                    if (c + NEXT < c1) {
                        if (dx) soon<W, true>(dx + (c + NEXT) * lddx + start);
                        if (dw) soon<W, false>(x + (c + NEXT) * ldx + start);
                    }
                    V<A, L> acc[R];
                    GS_UNROLL
                    for (int i = 0; i < R; i++)
                        acc[i] = dx && first ? load<A, L>(dx + c * lddx + start + i * L) : V<A, L>{};
                    int64_t k = slabs.cursor ? slabs.cursor[c - c0] : s.ptr[c];
                    int64_t end = upto(s, slabs.cursor ? &slabs.cursor[c - c0] : nullptr, k, s.ptr[c + 1], last);
                    if (dw) {
                        V<A, L> held[R];
                        GS_UNROLL
                        for (int i = 0; i < R; i++) held[i] = load<A, L>(x + c * ldx + start + i * L);
                        if (skip) clear_lanes<A, L, R>(held, skip);
                        for (int64_t from = k, upto = k; from < end; from = upto) {
                            upto = std::min(end, from + SEGMENT);
                            if (dx)
                                axpy_dots<A, L, R, true, false>(acc, held, base, stride, s.idx, vals, from, upto, dots,
                                                                slabs.far);
                            else
                                axpy_dots<A, L, R, false, false>(acc, held, base, stride, s.idx, vals, from, upto, dots,
                                                                 slabs.far);
                            if (direct && slabs.far && s.perm)
                                for (int64_t j = upto; j < std::min(upto + 2 * AHEAD, n); j++)
                                    __builtin_prefetch(to + s.perm[j], 1);
                            reduce_dots<A, L>(dots, upto - from, sums);
                            if (direct)
                                for (int64_t j = from; j < upto; j++) to[s.perm ? s.perm[j] : j] = sums[j - from];
                            else if (add)
                                for (int64_t j = from; j < upto; j++) to[j] += sums[j - from];
                            else
                                for (int64_t j = from; j < upto; j++) to[j] = sums[j - from];
                        }
                    } else {
                        axpy<A, L, R>(acc, base, stride, s.idx, vals, k, end, slabs.far);
                    }
                    if (dx) {
                        GS_UNROLL
                        for (int i = 0; i < R; i++) store<A, L>(dx + c * lddx + start + i * L, acc[i]);
                    }
                }
                first = last;
            } while (first < s.inner);
            add = true;
        });
        if (dw && !direct) {
            barrier(threads);
            for (int64_t k = k0; k < k1; k++) {
                A total = 0;
                for (int a = 0; pieces && a < grid.across; a++) total += sums_of[n * a + k];
                dw[s.perm ? s.perm[k] : k] = total;
            }
        }
    });
}

}  // namespace gs
