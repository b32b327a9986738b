// Vectors of L lanes, written once in the compiler's vector extension (GCC, Clang) and compiled for each instruction
// set.
//
//     V<A, L>                      L numbers of type A (float, double) in a register; A itself when L = 1
//     load<A, L>(const T*)         unaligned; T = A, or bf16 widened to float
//     store<A, L>(T*, v)           unaligned; to bf16 by rounding to nearest even
//     lane_sums<A, L>(v)           L vectors -> one vector of their L sums, by log2(L) butterflies
//     each_chunk<A>(batch, f)      cuts a batch into pieces of R vectors of L lanes; calls f(lanes, regs, start, skip)
//
// LANES<A> is the widest vector of the instruction set that this translation unit is compiled for.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define GS_INLINE inline __attribute__((always_inline))
#define GS_UNROLL _Pragma("GCC unroll 16")

namespace gs {

struct bf16 {
    uint16_t bits;
};

#if defined(GS_BYTES)
inline constexpr int BYTES = GS_BYTES;  // wider than the machine's: to try the code of another instruction set
#elif defined(__AVX512F__)
inline constexpr int BYTES = 64;
#elif defined(__AVX2__)
inline constexpr int BYTES = 32;
#else
inline constexpr int BYTES = 16;  // NEON, SSE2 and whatever the compiler makes of it elsewhere
#endif
template <class A>
inline constexpr int LANES = BYTES / int(sizeof(A));

template <class A, int L>
struct Vector {
    typedef A type __attribute__((vector_size(L * sizeof(A))));
    typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> lane_index;
    typedef lane_index index __attribute__((vector_size(L * sizeof(A))));
    typedef uint16_t half __attribute__((vector_size(L * 2)));
    typedef uint32_t full __attribute__((vector_size(L * 4)));
};
template <class A>
struct Vector<A, 1> {
    typedef A type;
};
template <class A, int L>
using V = typename Vector<A, L>::type;

template <class A, int L>
GS_INLINE V<A, L> splat(A a) {
    if constexpr (L == 1) return a;
    else return a - V<A, L>{};
}

template <class A, int L, class T>
GS_INLINE V<A, L> load(const T* p) {
    V<A, L> v;
    if constexpr (std::is_same_v<T, A>) {
        std::memcpy(&v, p, sizeof v);
    } else {  // bf16 is the upper half of a float
        static_assert(std::is_same_v<T, bf16> && std::is_same_v<A, float>);
        if constexpr (L == 1) {
            uint32_t wide = uint32_t(p->bits) << 16;
            std::memcpy(&v, &wide, 4);
        } else {
            typename Vector<A, L>::half half;
            std::memcpy(&half, p, sizeof half);
            typename Vector<A, L>::full full = __builtin_convertvector(half, typename Vector<A, L>::full) << 16;
            std::memcpy(&v, &full, sizeof v);
        }
    }
    return v;
}

GS_INLINE bf16 round_to_bf16(float a) {
    uint32_t u;
    std::memcpy(&u, &a, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40u)};  // NaN stays one
    return {uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// Keeps v in a register: without it the compiler loads an operand of two instructions twice.
template <class A, int L>
GS_INLINE void hold(V<A, L>& v) {
#if defined(GS_BYTES)
#elif defined(__AVX512F__)
    if constexpr (L > 1) asm("" : "+v"(v));
#elif defined(__x86_64__)
    if constexpr (L > 1) asm("" : "+x"(v));
#elif defined(__aarch64__)
    if constexpr (L > 1) asm("" : "+w"(v));
#endif
    (void)v;
}

template <class A, int L, class T>
GS_INLINE void store(T* p, V<A, L> v) {
    if constexpr (std::is_same_v<T, A>) {
        std::memcpy(p, &v, sizeof v);
    } else if constexpr (L == 1) {
        *p = round_to_bf16(v);
    } else {  // the same on all lanes
        typedef typename Vector<A, L>::full full;
        typedef typename Vector<A, L>::half narrow;
        full u;
        std::memcpy(&u, &v, sizeof u);
        const full rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
        const narrow half = __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded, narrow);
        std::memcpy(static_cast<void*>(p), &half, sizeof half);
    }
}

template <class A, int L>
GS_INLINE A sum(V<A, L> v) {
    if constexpr (L == 1) {
        return v;
    } else {
        A lanes[L], s = 0;
        std::memcpy(lanes, &v, sizeof v);
        for (int half = L / 2; half; half /= 2)
            for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
        s = lanes[0];
        return s;
    }
}

// One butterfly: lane i of the result is a[i] + a[i ^ H] where bit H of i is clear, and b[i] + b[i ^ H] where it is
// set.
template <class A, int L, int H, int... I>
GS_INLINE V<A, L> butterfly(V<A, L> a, V<A, L> b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    V<A, L> straight = __builtin_shufflevector(a, b, ((I & H) ? I + L : I)...);
    V<A, L> crossed = __builtin_shufflevector(a, b, ((I & H) ? (I ^ H) + L : (I ^ H))...);
#else
    typedef typename Vector<A, L>::index index;
    V<A, L> straight = __builtin_shuffle(a, b, index{((I & H) ? I + L : I)...});
    V<A, L> crossed = __builtin_shuffle(a, b, index{((I & H) ? (I ^ H) + L : (I ^ H))...});
#endif
    return straight + crossed;
}

// Lane i of the result is the sum of the lanes of v[i * STEP]. v is overwritten.
template <class A, int L, int H = 1>
GS_INLINE V<A, L> lane_sums(V<A, L>* v) {
    if constexpr (L == 1) {
        return v[0];
    } else if constexpr (H == L / 2) {
        return butterfly<A, L, H>(v[0], v[H], std::make_integer_sequence<int, L>{});
    } else {
        GS_UNROLL
        for (int i = 0; i < L; i += 2 * H)
            v[i] = butterfly<A, L, H>(v[i], v[i + H], std::make_integer_sequence<int, L>{});
        return lane_sums<A, L, 2 * H>(v);
    }
}

template <int N>
using Const = std::integral_constant<int, N>;

// Pieces of at most 8 vectors of L lanes. The last piece is as narrow as possible and may overlap the one before it:
// its first `skip` lanes are done already. Storing them again does no harm; sums must leave them out. A batch narrower
// than a vector is done in narrower vectors.
template <class A, int L = LANES<A>, class F>
void each_chunk(int64_t batch, F&& f) {
    if (batch < L) {
        if constexpr (L > 1) each_chunk<A, (L > 4 ? 4 : 1)>(batch, f);
        return;
    }
    int64_t start = 0;
    auto piece = [&](auto regs) {  // one of at most regs vectors; true if it was the last
        constexpr int R = decltype(regs)::value;
        int64_t left = batch - start;
        if (left <= 0 || left <= R / 2 * L || batch < R * L) return false;
        int64_t at = std::min(start, batch - R * L);
        f(Const<L>{}, regs, at, start - at);
        start += R * L;
        return true;
    };
    while (start < batch)
        if (!piece(Const<8>{}) && !piece(Const<4>{}) && !piece(Const<2>{})) piece(Const<1>{});
}

template <class A>
int64_t count_chunks(int64_t batch) {
    int64_t count = 0;
    each_chunk<A>(batch, [&](auto, auto, int64_t, int64_t) { count++; });
    return count;
}

}  // namespace gs
