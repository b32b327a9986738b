// How a convolution's kernels see an image: a tile of it, packed into scratch memory that fits the second cache.
//
// Images are batch-last: channel c, row i, column j of sample b lie at ((c * H + i) * W + j) * N + b. A tile holds some
// rows and columns of the result for a few lanes of the batch, and of the source what they need, of all channels or of
// a slab of them, with zeros for the padding. Columns of the source are packed by their remainder modulo the stride, so
// that neighbouring results read neighbours.
#pragma once
#include "../linear/native.hpp"

namespace gs {

struct Conv {
    int64_t C, H, W, O, OH, OW, KH, KW, SY, SX, PY, PX, DY, DX;
};

inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What is packed at a time: `high` x `wide` pixels of the result, `channels` channels (one of `slabs` slabs), and the
// rows and slots of scratch for them.
struct Tile {
    int64_t high, wide, channels, slabs, rows, slots;
};

// The tile with the least work besides the products: copies made for packing, results loaded again for each slab of
// channels. rows(h) and slots(w) are how much of the source h rows and w columns of the result need; a slot holds
// `bytes`.
template <class Rows, class Slots>
Tile best_tile(int64_t high, int64_t wide, int64_t channels, int64_t results, int64_t bytes, int64_t budget,
               int64_t least_wide, Rows rows, Slots slots) {
    Tile best{};
    double least = 0;
    for (int64_t parts_w = 1; parts_w <= wide; parts_w *= 2) {
        const int64_t w = ceil_div(wide, parts_w);
        for (int64_t parts_h = 1; parts_h < 2 * high; parts_h *= 2) {
            const int64_t h = ceil_div(high, parts_h), one = rows(h) * slots(w) * bytes;
            const int64_t fit = std::clamp<int64_t>(budget / one, 1, channels), slabs = ceil_div(channels, fit);
            double work = double(channels) * rows(h) * slots(w) / (h * w) * 2 + 12.0 * results * slabs +
                          (one > budget ? 1e12 : 0);
            if (!best.high || work < least)
                best = {h, w, ceil_div(channels, slabs), slabs, rows(h), slots(w)}, least = work;
            if (h == 1) break;
        }
        if (w <= least_wide) break;
    }
    return best;
}

// split[b * (outer + 1) ...]: for each row of the index the place where its entries of slab b begin; a slab is `size`
// inner indices.
inline void split_slabs(const Index& s, int64_t slabs, int64_t size, int64_t first, int64_t last, int32_t* split) {
    for (int64_t r = first; r < last; r++) {
        int32_t k = s.ptr[r];
        for (int64_t b = 0; b <= slabs; b++) {
            if (b == slabs) k = s.ptr[r + 1];
            else
                while (k < s.ptr[r + 1] && s.idx[k] < b * size) k++;
            split[b * s.outer + r] = k;
        }
    }
}

template <class T, int LC>
GS_INLINE void copy_lanes(T* out, const T* in, int64_t count) {
    if (count == LC) {
        std::memcpy(out, in, LC * sizeof(T));
    } else {
        std::memcpy(out, in, count * sizeof(T));
        std::memset(static_cast<void*>(out + count), 0, (LC - count) * sizeof(T));
    }
}

// Rows of one channel: source rows top + i for i < rows (step 1), columns left + j; slot j lies at (j % step) * slots /
// step + j / step. The same pixels of the next channel are fetched meanwhile.
template <class T, int LC>
void pack_plane(T* out, const T* plane, int64_t H, int64_t W, int64_t N, int64_t top, int64_t left, int64_t rows,
                int64_t slots, int64_t step, int64_t start, int64_t count) {
    const int64_t each = slots / step;
    for (int64_t i = 0; i < rows; i++, out += slots * LC) {
        const int64_t r = top + i;
        if (r < 0 || r >= H) {
            std::memset(static_cast<void*>(out), 0, slots * LC * sizeof(T));
            continue;
        }
        const T* row = plane + r * W * N + start;
        for (int64_t f = 0; f < step; f++)
            for (int64_t q = 0; q < each; q++) {
                const int64_t c = left + q * step + f;
                T* to = out + (f * each + q) * LC;
                if (c < 0 || c >= W) {
                    std::memset(static_cast<void*>(to), 0, LC * sizeof(T));
                } else {
                    soon<LC, false, 2>(row + c * N + H * W * N);
                    copy_lanes<T, LC>(to, row + c * N, count);
                }
            }
    }
}

// R vectors, LC lanes for each of R L / LC pixels, between registers and an image whose pixels are `step` numbers
// apart; `count` of the LC lanes exist.
template <class A, int L, int R, int LC, class T>
GS_INLINE void store_pixels(T* to, int64_t step, const V<A, L> (&acc)[R], int64_t count) {
    if (__builtin_expect(count == LC, 1)) {
        GS_UNROLL
        for (int i = 0; i < R; i++) store<A, L>(to + i * L / LC * step + i * L % LC, acc[i]);
    } else {
        T lanes[R * L];
        GS_UNROLL
        for (int i = 0; i < R; i++) store<A, L>(lanes + i * L, acc[i]);
        for (int i = 0; i < R * L / LC; i++) std::memcpy(to + i * step, lanes + i * LC, count * sizeof(T));
    }
}

template <class A, int L, int R, int LC, class T>
GS_INLINE void load_pixels(const T* from, int64_t step, V<A, L> (&out)[R], int64_t count) {
    if (__builtin_expect(count == LC, 1)) {
        GS_UNROLL
        for (int i = 0; i < R; i++) out[i] = load<A, L>(from + i * L / LC * step + i * L % LC);
    } else {
        T lanes[R * L] = {};
        for (int i = 0; i < R * L / LC; i++)
            std::memcpy(static_cast<void*>(lanes + i * LC), from + i * step, count * sizeof(T));
        GS_UNROLL
        for (int i = 0; i < R; i++) out[i] = load<A, L>(lanes + i * L);
    }
}

// The same pixels will be loaded, or stored, soon.
template <int L, int R, int LC, bool WRITE, class T>
GS_INLINE void soon_pixels(const T* p, int64_t step) {
    GS_UNROLL
    for (int i = 0; i < R * L / LC; i++) soon<LC, WRITE, WRITE ? 3 : 2>(p + i * step);
}

// f(regs, pixel): the pixels of a row in pieces that fill 8 registers, then 4, 2, 1, as long as that is whole pixels.
template <int PER, class F>
GS_INLINE void each_piece(int64_t pixels, F&& f) {
    int64_t p = 0;
    for (; p + 8 / PER <= pixels; p += 8 / PER) f(Const<8>{}, p);
    if constexpr (PER <= 4)
        if (p + 4 / PER <= pixels) f(Const<4>{}, p), p += 4 / PER;
    if constexpr (PER <= 2)
        if (p + 2 / PER <= pixels) f(Const<2>{}, p), p += 2 / PER;
    if constexpr (PER == 1)
        if (p < pixels) f(Const<1>{}, p);
}

// f(lanes for each pixel): as many vectors as fill eight registers with a row of the image, at least a cache line.
template <class A, class F>
void with_lanes(int64_t wide, int64_t batch, F&& f) {
    constexpr int L = LANES<A>;
    const int64_t useful = std::min<int64_t>(ceil_div(8, wide), ceil_div(batch, L));
    if (useful > 4) f(Const<8 * L>{});
    else if (useful > 2) f(Const<4 * L>{});
    else if ((useful > 1 || BYTES < 64) && batch > L) f(Const<2 * L>{});
    else f(Const<L>{});
}

inline constexpr int64_t FIRST_CACHE = 18 << 10;  // bytes of the first cache to fill with x, of 32 K or more

inline int64_t budget_of(const Machine& m) { return m.cache * 5 / 8; }

// How a tile of outputs sees x: the tile, and the offset of every entry of an index in row order.
struct Source {
    const Conv& g;
    Tile tile;
    int64_t K, plane, each;
    int lanes;

    Source(const Conv& g, const Index&, int lanes, int64_t bytes, const Machine& m)
        : g(g), K(g.KH * g.KW), lanes(lanes) {
        auto rows = [&](int64_t h) { return (h - 1) * g.SY + (g.KH - 1) * g.DY + 1; };
        auto slots = [&](int64_t w) { return ceil_div((w - 1) * g.SX + (g.KW - 1) * g.DX + 1, g.SX) * g.SX; };
        const int64_t least = std::max<int64_t>(1, 8 * BYTES / (lanes * bytes));
        tile = best_tile(g.OH, g.OW, g.C, g.O, lanes * bytes, budget_of(m), least, rows, slots);
        plane = tile.rows * tile.slots * lanes, each = tile.slots / g.SX;
    }

    int32_t offset(int64_t column) const {
        const int64_t c = column / K % tile.channels, tap = column % K, ky = tap / g.KW * g.DY, kx = tap % g.KW * g.DX;
        return int32_t(c * plane + (ky * tile.slots + kx % g.SX * each + kx / g.SX) * lanes);
    }

    void prepare(const Index& s, int64_t first, int64_t last, int32_t* off, int32_t* split) const {
        split_slabs(s, tile.slabs, tile.channels * K, first, last, split);
        for (int64_t k = s.ptr[first]; k < s.ptr[last]; k++) off[k] = offset(s.idx[k]);
    }

    template <class T, int LC>
    void pack(T* scratch, const T* x, int64_t b, int64_t oy, int64_t ox, int64_t N, int64_t start,
              int64_t count) const {
        const int64_t c0 = b * tile.channels, c1 = std::min(g.C, c0 + tile.channels);
        for (int64_t c = c0; c < c1; c++)
            pack_plane<T, LC>(scratch + (c - c0) * plane, x + c * g.H * g.W * N, g.H, g.W, N, oy * g.SY - g.PY,
                              ox * g.SX - g.PX, tile.rows, tile.slots, g.SX, start, count);
    }
};

}  // namespace gs
