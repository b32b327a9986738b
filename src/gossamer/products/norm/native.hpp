// Batch normalisation with an optional ReLU on batch-last tensors: channel c is the row of M = H W N numbers at x + c
// M.
//
//     forward     mean, var over the row;  y = (x - mean) / sqrt(var + eps) * weight + bias;   y = max(y, 0)
//     backward    g = dy where y > 0;  db = sum g;  dw = sum g xhat;  dx = weight / std * (g - db / M - xhat dw / M)
//
// Each takes one pass over memory for the sums. A part of SPAN numbers fits the first caches and is summed up twice:
// the mean, then the squares about it (Chan et al. 1983). The row is read again for y (or dx) while it is still in the
// last cache.
#pragma once
#include <cmath>

#include "../../_backend/native/parallel.hpp"
#include "../../_backend/native/vec.hpp"

namespace gs {

inline constexpr int64_t SPAN = 4096;

// f(lanes, i) over [0, count): vectors, then single numbers.
template <class A, class F>
GS_INLINE void each_lane(int64_t count, F&& f) {
    constexpr int L = LANES<A>;
    int64_t i = 0;
    for (; i + L <= count; i += L) f(Const<L>{}, i);
    for (; i < count; i++) f(Const<1>{}, i);
}

// Sum of f(lanes, i) over [0, count), in four accumulators.
template <class A, class F>
GS_INLINE A sum_over(int64_t count, F&& f) {
    constexpr int L = LANES<A>;
    V<A, L> acc[4] = {};
    int64_t i = 0;
    for (; i + 4 * L <= count; i += 4 * L) {
        GS_UNROLL
        for (int j = 0; j < 4; j++) acc[j] += f(Const<L>{}, i + j * L);
    }
    for (; i + L <= count; i += L) acc[0] += f(Const<L>{}, i);
    A tail = 0;
    for (; i < count; i++) tail += f(Const<1>{}, i);
    return sum<A, L>((acc[0] + acc[1]) + (acc[2] + acc[3])) + tail;
}

template <class A>
struct Affine {  // y = x * scale + shift
    A scale, shift;
    Affine(A mean, A invstd, const A* weight, const A* bias, int64_t c)
        : scale(invstd * (weight ? weight[c] : A(1))), shift((bias ? bias[c] : A(0)) - mean * scale) {}
};

template <class A>
void batch_norm_forward(const A* x, const A* weight, const A* bias, double eps, bool relu, A* y, A* mean, A* invstd,
                        int64_t C, int64_t M, Machine m) {
    parallel(m.threads, [&](int t, int threads) {
        for (int64_t c = C * t / threads; c < C * (t + 1) / threads; c++) {
            const A* row = x + c * M;
            double average = 0, squares = 0;
            for (int64_t start = 0; start < M; start += SPAN) {
                const int64_t count = std::min(SPAN, M - start);
                const A* p = row + start;
                const A here =
                    sum_over<A>(count, [=](auto lanes, int64_t i) { return load<A, decltype(lanes)::value>(p + i); }) /
                    A(count);
                const A about = sum_over<A>(count, [=](auto lanes, int64_t i) {
                    auto d = load<A, decltype(lanes)::value>(p + i) - here;
                    return d * d;
                });
                const double off = here - average, share = double(count) / double(start + count);
                average += off * share;
                squares += about + off * off * double(start) * share;
            }
            mean[c] = A(average);
            invstd[c] = A(1 / std::sqrt(squares / double(M) + eps));
            const Affine<A> f(mean[c], invstd[c], weight, bias, c);
            A* out = y + c * M;
            each_lane<A>(M, [=](auto lanes, int64_t i) {
                constexpr int L = decltype(lanes)::value;
                V<A, L> v = load<A, L>(row + i) * f.scale + f.shift, zero{};
                store<A, L>(out + i, relu ? (v > zero ? v : (v == v ? zero : v)) : v);
            });
        }
    });
}

template <class A>
void batch_norm_backward(const A* dy, const A* x, const A* weight, const A* bias, const A* mean, const A* invstd,
                         bool relu, A* dx, A* dweight, A* dbias, int64_t C, int64_t M, Machine m) {
    parallel(m.threads, [&](int t, int threads) {
        for (int64_t c = C * t / threads; c < C * (t + 1) / threads; c++) {
            const Affine<A> f(mean[c], invstd[c], weight, bias, c);
            const A center = mean[c], *in = x + c * M, *g = dy + c * M;
            auto passed = [=](auto lanes, int64_t i) {
                constexpr int L = decltype(lanes)::value;
                V<A, L> d = load<A, L>(g + i), zero{};
                return relu ? (load<A, L>(in + i) * f.scale + f.shift > zero ? d : zero) : d;
            };
            double sums = 0, dots = 0;
            for (int64_t start = 0; start < M; start += SPAN) {
                const int64_t count = std::min(SPAN, M - start);
                sums += sum_over<A>(count, [=](auto lanes, int64_t i) { return passed(lanes, start + i); });
                dots += sum_over<A>(count, [=](auto lanes, int64_t i) {
                    return passed(lanes, start + i) * (load<A, decltype(lanes)::value>(in + start + i) - center);
                });
            }
            if (dbias) dbias[c] = A(sums);
            if (dweight) dweight[c] = A(dots * invstd[c]);
            if (!dx) continue;
            const A level = A(sums / double(M)), slope = A(dots / double(M) * double(invstd[c]) * double(invstd[c]));
            A* out = dx + c * M;
            each_lane<A>(M, [=](auto lanes, int64_t i) {
                constexpr int L = decltype(lanes)::value;
                store<A, L>(out + i, (passed(lanes, i) - level - (load<A, L>(in + i) - center) * slope) * f.scale);
            });
        }
    });
}

// out[c] = the sum of row c: the gradient of a bias.
template <class A, class T>
void row_sums(const T* x, A* out, int64_t C, int64_t M, Machine m) {
    parallel(m.threads, [&](int t, int threads) {
        for (int64_t c = C * t / threads; c < C * (t + 1) / threads; c++) {
            double total = 0;
            for (int64_t start = 0; start < M; start += SPAN) {
                const T* p = x + c * M + start;
                total += sum_over<A>(std::min(SPAN, M - start),
                                     [=](auto lanes, int64_t i) { return load<A, decltype(lanes)::value>(p + i); });
            }
            out[c] = A(total);
        }
    });
}

}  // namespace gs
