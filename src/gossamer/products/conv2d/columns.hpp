// A matrix in blocks of h x w weights as lists of columns, and the innermost loops over them (block.hpp has the
// products).
//
// A block row covers h rows of the matrix. Its blocks, one after the other, are a list of columns f. Each column has
// one offset into the packed tile of the image (tile.hpp), and h values that lie one after the other (they are
// transposed first if w > 1).
#pragma once
#include <numeric>

#include "tile.hpp"

namespace gs {

struct Blocks {
    Index index;  // block rows and block columns, row order
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
GS_INLINE void rows_from_columns(V<A, L> (&acc)[G][R], const T* base, const int32_t* off, const A* vals, int64_t h,
                                 int64_t f, int64_t end) {
    for (; f < end; f++) {
        const A* w = vals + f * h;
        V<A, L> x[R];
        GS_UNROLL
        for (int i = 0; i < R; i++) x[i] = load<A, L>(base + off[f] + i * L), hold<A, L>(x[i]);
        GS_UNROLL
        for (int g = 0; g < G; g++) GS_UNROLL
        for (int i = 0; i < R; i++) acc[g][i] += w[g] * x[i];
    }
}

// base[off[f] ...] += sum_g vals[f h + g] dy[g] for f in [f, end)
template <class A, int L, int G, int R>
GS_INLINE void columns_from_rows(const V<A, L> (&dy)[G][R], A* base, const int32_t* off, const A* vals, int64_t h,
                                 int64_t f, int64_t end) {
    for (; f < end; f++) {
        const A* w = vals + f * h;
        V<A, L> acc[R];
        GS_UNROLL
        for (int i = 0; i < R; i++) acc[i] = load<A, L>(base + off[f] + i * L);
        GS_UNROLL
        for (int g = 0; g < G; g++) GS_UNROLL
        for (int i = 0; i < R; i++) acc[i] += w[g] * dy[g][i];
        GS_UNROLL
        for (int i = 0; i < R; i++) store<A, L>(base + off[f] + i * L, acc[i]);
    }
}

// sums[q G + g] = dy[g] . base[off[q] ...] over `high` rows of `count` numbers; dy is packed, row by row; rows of x lie
// `pitch` apart.
template <class A, int L, int G, int Q, class T>
GS_INLINE void dots_of_tile(const T* dy, const T* base, const int32_t (&off)[Q], int64_t high, int64_t count,
                            int64_t pitch, A* sums) {
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

// A tile of the image, its channels in slabs that hold whole blocks, and the list of columns with their offsets and
// values.
template <class A>
struct Columns : Source {
    const Blocks& s;
    int64_t each_slab;  // block columns in it
    int32_t *off, *split;
    const A *values, *vals;

    Columns(const Blocks& s, const A* values, const Conv& g, int lanes, int64_t bytes, int64_t channels,
            const Machine& m)
        : Source(g, s.index, lanes, bytes, m), s(s), values(values) {
        static thread_local Scratch tables, offsets, splits, ordered;
        const int64_t n = s.index.ptr[s.index.outer],
                      grain = s.w / std::gcd(s.w, K);  // channels that hold whole blocks
        const int64_t slabs =
            std::clamp<int64_t>(n * s.w / (4 * s.index.outer), 1, tile.slabs);  // every row with a few columns in each
        tile.channels = ceil_div(std::min(ceil_div(g.C, slabs), channels), grain) * grain;
        tile.slabs = ceil_div(g.C, tile.channels);
        each_slab = tile.channels * K / s.w;
        table = tables.get<int32_t>(tile.channels * K);
        for (int64_t tap = 0; tap < K; tap++) table[tap] = offset(tap);
        for (int64_t i = K; i < tile.channels * K; i++) table[i] = table[i - K] + int32_t(plane);
        off = offsets.get<int32_t>(n * s.w), split = splits.get<int32_t>((tile.slabs + 1) * s.index.outer);
        vals = values && s.w > 1 ? ordered.get<A>(n * s.h * s.w) : values;
    }

    void prepare(int t, int threads) const {
        const int64_t r0 = share(s.index.ptr, s.index.outer, t, threads),
                      r1 = share(s.index.ptr, s.index.outer, t + 1, threads);
        split_slabs(s.index, tile.slabs, each_slab, r0, r1, split);
        for (int64_t b = 0; b < tile.slabs; b++)
            for (int64_t r = r0; r < r1; r++)
                for (int64_t k = split[b * s.index.outer + r]; k < split[(b + 1) * s.index.outer + r]; k++)
                    for (int64_t c = 0; c < s.w; c++)
                        off[k * s.w + c] = table[(s.index.idx[k] - b * each_slab) * s.w + c];
        if (vals != values)
            for (int64_t k = s.index.ptr[r0]; k < s.index.ptr[r1]; k++)
                for (int64_t c = 0; c < s.w; c++)
                    for (int64_t g = 0; g < s.h; g++)
                        const_cast<A*>(vals)[(k * s.w + c) * s.h + g] = values[(k * s.h + g) * s.w + c];
    }

    int64_t rows(int64_t r) const { return std::min(s.h, s.rows - r * s.h); }
    int64_t first(int64_t b, int64_t r) const { return split[b * s.index.outer + r] * s.w; }
    int64_t last(int64_t b, int64_t r) const {
        const int64_t k = split[(b + 1) * s.index.outer + r];
        const bool empty = k == split[b * s.index.outer + r];
        return k * s.w - (empty ? 0 : std::max<int64_t>(0, (s.index.idx[k - 1] + 1) * s.w - s.cols));
    }

  private:
    int32_t* table;
};

}  // namespace gs
