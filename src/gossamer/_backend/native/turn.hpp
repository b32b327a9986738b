// From the order that torch gives its tensors to batch-last: y[m N + n] = x[n M + m], in tiles of a cache line each
// way.
#pragma once
#include <algorithm>
#include <cstring>

#include "parallel.hpp"

namespace gs {

template <class T>
void turn(const T* x, T* y, int64_t N, int64_t M, Machine machine) {
    constexpr int64_t SIDE = 64 / sizeof(T);
    const int64_t tiles = (M + SIDE - 1) / SIDE;
    parallel(machine.threads, [&](int t, int threads) {
        for (int64_t tile = tiles * t / threads; tile < tiles * (t + 1) / threads; tile++) {
            const int64_t m = tile * SIDE, width = std::min(SIDE, M - m);
            for (int64_t n = 0; n < N; n += SIDE) {
                const int64_t height = std::min(SIDE, N - n);
                T held[SIDE][SIDE];
                if (width == SIDE) {
                    for (int64_t j = 0; j < height; j++)
                        for (int64_t i = 0; i < SIDE; i++) held[i][j] = x[(n + j) * M + m + i];
                } else {
                    for (int64_t j = 0; j < height; j++)
                        for (int64_t i = 0; i < width; i++) held[i][j] = x[(n + j) * M + m + i];
                }
                for (int64_t i = 0; i < width; i++)
                    std::memcpy(static_cast<void*>(y + (m + i) * N + n), held[i], height * sizeof(T));
            }
        }
    });
}

}  // namespace gs
