// Threads, shares of work, scratch memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gs {

struct Machine {
    int threads;
    int64_t cache;  // bytes of the second cache
};

// f(thread, threads) on each of the threads of torch's own OpenMP pool; plainly when there is one.
template <class F>
void parallel(int threads, F&& f) {
    if (threads <= 1) {
        f(0, 1);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        f(omp_get_thread_num(), omp_get_num_threads());
#else
        f(0, 1);
#endif
    }
}

// Every thread of a parallel region waits here for the others.
inline void barrier(int threads) {
    if (threads > 1) {
#pragma omp barrier
    }
}

// T threads as a grid: `across` of them share the pieces of the batch, `down` the rows.
struct Grid {
    int across, down;
    Grid(int threads, int64_t pieces) : across(1), down(threads) {
        for (int d = 1; d <= threads && d <= pieces; d++)
            if (threads % d == 0 && (pieces % d == 0 || pieces >= 4 * d)) across = d, down = threads / d;
    }
};

// Where share t of T begins: rows split so that every share holds about as many entries (a row counts two entries
// more).
inline int64_t share(const int32_t* ptr, int64_t rows, int t, int T) {
    if (t == 0) return 0;
    if (t == T) return rows;
    int64_t goal = (int64_t(ptr[rows]) + 2 * rows) * t / T, low = 0, high = rows;
    while (low < high) {
        int64_t mid = (low + high) / 2;
        if (int64_t(ptr[mid]) + 2 * mid < goal) low = mid + 1;
        else high = mid;
    }
    return low;
}

// Scratch memory that a thread keeps from call to call; what it holds is lost at the next get().
class Scratch {
    void* p = nullptr;
    size_t size = 0;

  public:
    ~Scratch() { std::free(p); }
    template <class T>
    T* get(int64_t count) {
        size_t need = (size_t(count) * sizeof(T) + 127) / 64 * 64;
        if (need > size) {
            std::free(p);
            p = std::aligned_alloc(64, need);
            size = p ? need : 0;
            if (!p) throw std::bad_alloc();
        }
        return static_cast<T*>(p);
    }
};

}  // namespace gs
