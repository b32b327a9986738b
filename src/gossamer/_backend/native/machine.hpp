// The machine: threads, caches, memory.
#pragma once
#include <sys/mman.h>
#if defined(__linux__)
#include <malloc.h>
#endif
#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <string>
#include <vector>

#include "parallel.hpp"
#include "vec.hpp"

namespace gs {
namespace {

int64_t cache_bytes = 512 << 10;
volatile bool forked = false;  // a child of fork() has none of the OpenMP threads of its parent: it works alone

Machine machine(int threads) { return {forked ? 1 : std::max(1, threads), cache_bytes}; }

// Called once, when the module is loaded.
void look_at_machine() {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (found >= (256 << 10)) cache_bytes = std::min<int64_t>(found, 4 << 20);
#endif
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

// Asks the system to put a large result into huge pages: fewer page faults at first, fewer misses of the TLB later.
template <class T>
T* huge(T* p, int64_t count) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = 2 << 20;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(p) + page - 1) / page * page;
    const uintptr_t last = reinterpret_cast<uintptr_t>(p + count) / page * page;
    if (last >= first + 2 * page) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
    (void)count;
    return p;
}

// The most multiply-adds that this build can do: twelve independent chains in registers on every thread. Returns FLOP
// per second.
double peak_flops(int threads, double seconds) {
    constexpr int L = LANES<float>;
    double rate = 0;
    parallel(machine(threads).threads, [&](int, int) {
        V<float, L> acc[12];
        for (int j = 0; j < 12; j++) acc[j] = splat<float, L>(1.0f + float(j));
        const V<float, L> w = splat<float, L>(0.5f);
        const auto start = std::chrono::steady_clock::now();
        double taken = 0;
        int64_t rounds = 0;
        while (taken < seconds) {
            for (int i = 0; i < 100000; i++) {
                GS_UNROLL
                for (int j = 0; j < 12; j++) acc[j] = acc[j] * w + w;
                asm volatile("");
            }
            rounds += 100000;
            taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        }
        V<float, L> all = acc[0];
        for (int j = 1; j < 12; j++) all += acc[j];
        const double mine = 2.0 * L * 12 * double(rounds) / taken +
                            1e-30 * sum<float, L>(all);  // the sum keeps the work from vanishing
#pragma omp atomic
        rate += mine;
    });
    return rate;
}

// Freed memory stays with the process, for the next step's activations. By default glibc returns large blocks to the
// system at once, and the system clears each of their pages again at the next use. Returns whether the allocator
// accepted the setting.
bool keep_freed_memory() {
#if defined(__GLIBC__)
    return mallopt(M_MMAP_THRESHOLD, 1 << 30) && mallopt(M_TRIM_THRESHOLD, INT_MAX);
#else
    return false;
#endif
}

std::vector<std::string>
supported() {  // instruction sets of this machine, best first, of those that there are builds for
    std::vector<std::string> names;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        names.push_back("avx512");
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
#endif
    names.push_back("plain");
    return names;
}

}  // namespace
}  // namespace gs
