// What Python sees of the kernels: one extension module for each instruction set, compiled from this one file.
//
// Tensors come in by DLPack's C exchange API (version 1.3: a view of a live tensor, some 50 ns; the older __dlpack__() call costs 4 us,
// more than a small layer's arithmetic). Nothing of libtorch is linked: one build serves every torch that has that API. Shapes, dtypes and
// strides are checked here; that the indices lie within the matrix is what a Support guarantees (Support.from_index verifies them).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#if defined(__linux__)
#include <malloc.h>
#endif
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <stdexcept>
#include <string>

#include "../../products/norm/native.hpp"
#include "../../products/conv2d/block.hpp"
#include "../../products/conv2d/native.hpp"
#include "../../products/linear/native.hpp"
#include "../index/native.hpp"
#include "turn.hpp"

namespace nb = nanobind;
using namespace gs;

namespace {

// ---- DLPack, the part of it that is used (github.com/dmlc/dlpack, include/dlpack/dlpack.h, version 1.3)

struct DLTensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t vector;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

struct DLPackExchangeAPI {
    uint32_t major, minor;
    DLPackExchangeAPI* previous;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*view_from_object)(void* object, DLTensor* out);
    void* current_work_stream;
};

const DLPackExchangeAPI* exchange = nullptr;

void use_tensors_of(nb::handle type) {
    nb::object capsule = type.attr("__dlpack_c_exchange_api__");
    auto* api = static_cast<DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api) throw nb::python_error();
    while (api && api->major != 1) api = api->previous;
    if (!api || !api->view_from_object) throw std::runtime_error("this torch offers no DLPack exchange API of version 1");
    exchange = api;
}

enum class Kind { f32, f64, bf, i32 };

struct Argument {
    DLTensor t{};
    const char* name;

    Argument(nb::handle object, const char* name) : name(name) {
        if (object.is_none()) return;
        if (!exchange) throw std::runtime_error("use_tensors_of(torch.Tensor) first");
        if (exchange->view_from_object(object.ptr(), &t)) {  // another type, no memory
            PyErr_Clear();
            fail("must be a strided tensor in the memory of the CPU");
        }
        if (t.device_type != 1) fail("must lie in the memory of the CPU");
        t.data = static_cast<char*>(t.data) + t.byte_offset;
    }
    [[noreturn]] void fail(const std::string& what) const { throw std::invalid_argument(std::string(name) + " " + what); }
    bool given() const { return t.ndim || t.data; }
    void needed() const {
        if (!given()) fail("is needed");
    }
    int64_t size(int d) const { return t.shape[d]; }
    Kind kind() const {
        if (t.code == 2 && t.bits == 32) return Kind::f32;
        if (t.code == 2 && t.bits == 64) return Kind::f64;
        if (t.code == 4 && t.bits == 16) return Kind::bf;
        if (t.code == 0 && t.bits == 32) return Kind::i32;
        fail("has a dtype that the kernels do not know");
    }
    int64_t numel() const {
        int64_t n = 1;
        for (int d = 0; d < t.ndim; d++) n *= t.shape[d];
        return n;
    }
    void shaped(std::initializer_list<int64_t> shape) const {
        bool same = t.ndim == int(shape.size());
        int d = 0;
        for (int64_t n : shape) same = same && t.shape[d++] == n;
        if (!same) fail("has an unexpected shape");
    }
    // (N, C, ...) with the batch innermost: C, ..., N in memory.
    void batch_last() const {
        if (t.ndim < 2) fail("must have a batch and features");
        if (!numel()) return;
        int64_t expected = t.shape[0];
        if (t.shape[0] > 1 && t.strides[0] != 1) fail("must have the batch innermost in memory");
        for (int d = t.ndim - 1; d > 0; d--) {
            if (t.shape[d] > 1 && t.strides[d] != expected) fail("must be dense, with the batch innermost in memory");
            expected *= t.shape[d];
        }
    }
    void dense() const {
        int64_t expected = 1;
        for (int d = t.ndim - 1; d >= 0; d--) {
            if (t.shape[d] > 1 && t.strides[d] != expected) fail("must be contiguous");
            expected *= t.shape[d];
        }
    }
    template <class T>
    T* data() const {
        return static_cast<T*>(t.data);
    }
    template <class A>
    A* vector(int64_t n) const {  // of n numbers of type A, or null if not given
        if (!given()) return nullptr;
        if (kind() != (sizeof(A) == 4 ? Kind::f32 : Kind::f64)) fail("must be of the dtype that is computed in");
        if (numel() != n) fail("has an unexpected number of entries");
        dense();
        return data<A>();
    }
};

// Large results in huge pages, where the system gives them on request: fewer faults when fresh, fewer misses of the TLB ever after.
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

int64_t cache_bytes = 512 << 10;
volatile bool forked = false;  // a child of fork() has none of the OpenMP threads of its parent: it works alone

Machine machine(int threads) { return {forked ? 1 : std::max(1, threads), cache_bytes}; }

struct IndexArguments {
    Argument ptr, idx, perm;
    IndexArguments(nb::handle ptr, nb::handle idx, nb::handle perm) : ptr(ptr, "crow"), idx(idx, "col"), perm(perm, "perm") {}
    Index of(int64_t outer, int64_t inner) const {
        for (const Argument* a : {&ptr, &idx, &perm})
            if (a->given()) {
                if (a->kind() != Kind::i32) a->fail("must be int32");
                a->dense();
            }
        idx.needed();
        ptr.shaped({outer + 1});
        if (perm.given() && perm.numel() != idx.numel()) perm.fail("has an unexpected number of entries");
        const Index s{ptr.data<int32_t>(), idx.data<int32_t>(), perm.given() ? perm.data<int32_t>() : nullptr, outer, inner};
        if (s.ptr[outer] != idx.numel()) idx.fail("has an unexpected number of entries");
        return s;
    }
    int64_t n() const { return idx.numel(); }
};

// f(number computed in, number stored) for the dtype of activations.
template <class F>
void by_dtype(const Argument& x, F&& f) {
    switch (x.kind()) {
        case Kind::f32: return f(float{}, float{});
        case Kind::f64: return f(double{}, double{});
        case Kind::bf: return f(float{}, bf16{});
        default: x.fail("must be float32, float64 or bfloat16");
    }
}

void same_kind(const Argument& a, const Argument& b) {
    if (a.given() && b.given() && a.kind() != b.kind()) b.fail("must have the dtype of the other activations");
}

// ---- linear

void py_linear_forward(nb::handle x_, nb::handle values_, nb::handle bias_, nb::handle y_, nb::handle crow, nb::handle col, int threads) {
    Argument x(x_, "x"), values(values_, "values"), bias(bias_, "bias"), y(y_, "y");
    IndexArguments index(crow, col, nb::none());
    values.needed(), x.batch_last(), y.batch_last(), same_kind(x, y);
    const int64_t N = x.size(0), cols = x.size(1), rows = y.size(1);
    x.shaped({N, cols}), y.shaped({N, rows});
    const Index s = index.of(rows, cols);
    by_dtype(x, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        const A *v = values.vector<A>(index.n()), *b = bias.vector<A>(rows);
        nb::gil_scoped_release release;
        linear_forward<A, T>(x.data<T>(), N, v, b, y.data<T>(), N, s, N, machine(threads));
    });
}

void py_linear_backward(nb::handle dy_, nb::handle x_, nb::handle values_, nb::handle dx_, nb::handle dw_, nb::handle ptr, nb::handle idx,
                        nb::handle perm, int threads) {
    Argument dy(dy_, "dy"), x(x_, "x"), values(values_, "values"), dx(dx_, "dx"), dw(dw_, "dw");
    IndexArguments index(ptr, idx, perm);
    if (dw.given() && !x.given()) x.fail("is needed for dw");
    if (dx.given() && (!values.given() || !index.perm.given())) values.fail("and perm are needed for dx");
    const Argument& other = x.given() ? x : dx;
    dy.batch_last(), other.batch_last();
    const int64_t N = dy.size(0), rows = dy.size(1), cols = other.size(1);
    for (const Argument* a : {&dy, &x, &dx})
        if (a->given()) a->batch_last(), same_kind(dy, *a), a->shaped({N, a == &dy ? rows : cols});
    const Index s = index.of(cols, rows);
    by_dtype(dy, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        const A* v = values.vector<A>(index.n());
        A* w = dw.vector<A>(index.n());
        nb::gil_scoped_release release;
        linear_backward<A, T>(dy.data<T>(), N, x.data<T>(), N, v, dx.data<T>(), N, w, s, N, machine(threads));
    });
}

// ---- convolution: geometry is kernel, stride, padding, dilation, each vertical, horizontal

Conv conv_of(const Argument& image, const Argument& result, const std::vector<int64_t>& g) {
    if (g.size() != 8) throw std::invalid_argument("geometry must be eight numbers");
    for (const Argument* a : {&image, &result})
        if (a->t.ndim != 4) a->fail("must be (batch, channels, height, width)");
    Conv c{image.size(1), image.size(2), image.size(3), result.size(1), result.size(2), result.size(3), g[0], g[1], g[2], g[3], g[4], g[5],
           g[6], g[7]};
    const bool fits = c.KH > 0 && c.KW > 0 && c.SY > 0 && c.SX > 0 && c.DY > 0 && c.DX > 0 && c.PY >= 0 && c.PX >= 0 &&
                      c.OH == floor_div(c.H + 2 * c.PY - c.DY * (c.KH - 1) - 1, c.SY) + 1 &&
                      c.OW == floor_div(c.W + 2 * c.PX - c.DX * (c.KW - 1) - 1, c.SX) + 1 && image.size(0) == result.size(0) &&
                      std::min({c.C, c.H, c.W, c.O, c.OH, c.OW}) > 0;
    if (!fits) result.fail("has not the size that this geometry gives");
    return c;
}

void py_conv_forward(nb::handle x_, nb::handle values_, nb::handle bias_, nb::handle y_, nb::handle crow, nb::handle col,
                     const std::vector<int64_t>& geometry, int threads) {
    Argument x(x_, "x"), values(values_, "values"), bias(bias_, "bias"), y(y_, "y");
    IndexArguments index(crow, col, nb::none());
    const Conv g = conv_of(x, y, geometry);
    values.needed(), x.batch_last(), y.batch_last(), same_kind(x, y);
    const Index s = index.of(g.O, g.C * g.KH * g.KW);
    by_dtype(x, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        const A *v = values.vector<A>(index.n()), *b = bias.vector<A>(g.O);
        nb::gil_scoped_release release;
        conv_forward<A, T>(x.data<T>(), v, b, huge(y.data<T>(), y.numel()), s, g, x.size(0), machine(threads));
    });
}

void py_conv_backward(nb::handle dy_, nb::handle x_, nb::handle values_, nb::handle dx_, nb::handle dw_, nb::handle ccol, nb::handle row,
                      nb::handle perm, const std::vector<int64_t>& geometry, int threads) {
    Argument dy(dy_, "dy"), x(x_, "x"), values(values_, "values"), dx(dx_, "dx"), dw(dw_, "dw");
    IndexArguments index(ccol, row, perm);
    if (!dx.given() || !values.given() || !index.perm.given()) dx.fail(", values and perm are needed (conv_weight makes dw alone)");
    if (dw.given() && !x.given()) x.fail("is needed for dw");
    const Conv g = conv_of(dx, dy, geometry);
    for (const Argument* a : {&dy, &x, &dx})
        if (a->given()) a->batch_last(), same_kind(dy, *a);
    if (x.given()) x.shaped({dx.size(0), g.C, g.H, g.W});
    const Index s = index.of(g.C * g.KH * g.KW, g.O);
    by_dtype(dy, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        const A* v = values.vector<A>(index.n());
        A* w = dw.vector<A>(index.n());
        nb::gil_scoped_release release;
        conv_backward<A, T>(dy.data<T>(), x.data<T>(), v, huge(dx.data<T>(), dx.numel()), w, s, g, dx.size(0), machine(threads));
    });
}

void py_conv_weight(nb::handle dy_, nb::handle x_, nb::handle dw_, nb::handle crow, nb::handle col, const std::vector<int64_t>& geometry,
                    int threads) {
    Argument dy(dy_, "dy"), x(x_, "x"), dw(dw_, "dw");
    IndexArguments index(crow, col, nb::none());
    const Conv g = conv_of(x, dy, geometry);
    x.batch_last(), dy.batch_last(), same_kind(x, dy);
    const Index s = index.of(g.O, g.C * g.KH * g.KW);
    by_dtype(dy, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        A* w = dw.vector<A>(index.n());
        if (!dw.given()) dw.fail("is needed");
        nb::gil_scoped_release release;
        conv_weight<A, T>(dy.data<T>(), x.data<T>(), w, s, g, x.size(0), machine(threads));
    });
}

// ---- units of h x w: a matrix is an image of one pixel, its geometry is not given

struct BlockArguments {
    Conv g;
    Units u;
    BlockArguments(const Argument& image, const Argument& result, const IndexArguments& index, const std::vector<int64_t>& unit,
                   const std::vector<int64_t>& geometry) {
        image.batch_last(), result.batch_last(), same_kind(image, result);
        if (unit.size() != 2 || unit[0] < 1 || unit[1] < 1) throw std::invalid_argument("unit must be two positive numbers");
        if (geometry.empty()) {
            g = {image.size(1), 1, 1, result.size(1), 1, 1, 1, 1, 1, 1, 0, 0, 1, 1};
            image.shaped({result.size(0), g.C}), result.shaped({image.size(0), g.O});
        } else {
            g = conv_of(image, result, geometry);
        }
        const int64_t rows = g.O, cols = g.C * g.KH * g.KW;
        u = {index.of(ceil_div(rows, unit[0]), ceil_div(cols, unit[1])), unit[0], unit[1], rows, cols};
    }
    int64_t n() const { return int64_t(u.s.ptr[u.s.outer]) * u.h * u.w; }
};

void py_block_forward(nb::handle x_, nb::handle values_, nb::handle bias_, nb::handle y_, nb::handle crow, nb::handle col,
                      const std::vector<int64_t>& unit, const std::vector<int64_t>& geometry, int threads) {
    Argument x(x_, "x"), values(values_, "values"), bias(bias_, "bias"), y(y_, "y");
    IndexArguments index(crow, col, nb::none());
    const BlockArguments block(x, y, index, unit, geometry);
    by_dtype(x, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        const A *v = values.vector<A>(block.n()), *b = bias.vector<A>(block.u.rows);
        if (!values.given()) values.fail("are needed");
        nb::gil_scoped_release release;
        block_forward<A, T>(x.data<T>(), v, b, huge(y.data<T>(), y.numel()), block.u, block.g, x.size(0), machine(threads));
    });
}

void py_block_backward(nb::handle dy_, nb::handle x_, nb::handle values_, nb::handle dx_, nb::handle dw_, nb::handle crow, nb::handle col,
                       const std::vector<int64_t>& unit, const std::vector<int64_t>& geometry, int threads) {
    Argument dy(dy_, "dy"), x(x_, "x"), values(values_, "values"), dx(dx_, "dx"), dw(dw_, "dw");
    IndexArguments index(crow, col, nb::none());
    if (dw.given() && !x.given()) x.fail("is needed for dw");
    if (dx.given() && !values.given()) values.fail("are needed for dx");
    const BlockArguments block(dx.given() ? dx : x, dy, index, unit, geometry);
    if (dx.given() && x.given()) BlockArguments(x, dy, index, unit, geometry);
    by_dtype(dy, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        const A* v = values.vector<A>(block.n());
        A* w = dw.vector<A>(block.n());
        const Machine m = machine(threads);
        nb::gil_scoped_release release;
        if (dx.given()) block_input<A, T>(dy.data<T>(), v, huge(dx.data<T>(), dx.numel()), block.u, block.g, dy.size(0), m);
        if (w) block_weight<A, T>(dy.data<T>(), x.data<T>(), w, block.u, block.g, dy.size(0), m);
    });
}

// ---- batch normalisation and biases: (N, C, ...)

void py_batch_norm_forward(nb::handle x_, nb::handle weight_, nb::handle bias_, double eps, bool relu, nb::handle y_, nb::handle mean_,
                           nb::handle invstd_, int threads) {
    Argument x(x_, "x"), weight(weight_, "weight"), bias(bias_, "bias"), y(y_, "y"), mean(mean_, "mean"), invstd(invstd_, "invstd");
    x.batch_last(), y.batch_last(), mean.needed(), invstd.needed(), same_kind(x, y);
    if (x.numel() != y.numel()) y.fail("has an unexpected shape");
    const int64_t C = x.size(1), M = C ? x.numel() / C : 0;
    by_dtype(x, [&](auto a, auto stored) {
        using A = decltype(a);
        if constexpr (std::is_same_v<A, decltype(stored)>) {
            const A *w = weight.vector<A>(C), *b = bias.vector<A>(C);
            A *u = mean.vector<A>(C), *i = invstd.vector<A>(C);
            nb::gil_scoped_release release;
            batch_norm_forward<A>(x.data<A>(), w, b, eps, relu, huge(y.data<A>(), y.numel()), u, i, C, M, machine(threads));
        } else {
            x.fail("must be float32 or float64");
        }
    });
}

void py_batch_norm_backward(nb::handle dy_, nb::handle x_, nb::handle weight_, nb::handle bias_, nb::handle mean_, nb::handle invstd_,
                            bool relu, nb::handle dx_, nb::handle dweight_, nb::handle dbias_, int threads) {
    Argument dy(dy_, "dy"), x(x_, "x"), weight(weight_, "weight"), bias(bias_, "bias"), mean(mean_, "mean"), invstd(invstd_, "invstd");
    Argument dx(dx_, "dx"), dweight(dweight_, "dweight"), dbias(dbias_, "dbias");
    dy.batch_last(), x.batch_last(), mean.needed(), invstd.needed();
    for (const Argument* a : {&dy, &x, &dx})
        if (a->given()) {
            a->batch_last(), same_kind(dy, *a);
            if (a->numel() != x.numel()) a->fail("has an unexpected shape");
        }
    const int64_t C = x.size(1), M = C ? x.numel() / C : 0;
    by_dtype(x, [&](auto a, auto stored) {
        using A = decltype(a);
        if constexpr (std::is_same_v<A, decltype(stored)>) {
            const A *w = weight.vector<A>(C), *b = bias.vector<A>(C), *u = mean.vector<A>(C), *i = invstd.vector<A>(C);
            A *to = dx.given() ? huge(dx.data<A>(), dx.numel()) : nullptr, *dw = dweight.vector<A>(C), *db = dbias.vector<A>(C);
            nb::gil_scoped_release release;
            batch_norm_backward<A>(dy.data<A>(), x.data<A>(), w, b, u, i, relu, to, dw, db, C, M, machine(threads));
        } else {
            x.fail("must be float32 or float64");
        }
    });
}

void py_row_sums(nb::handle x_, nb::handle out_, int threads) {
    Argument x(x_, "x"), out(out_, "out");
    x.batch_last(), out.needed();
    const int64_t C = x.size(1), M = C ? x.numel() / C : 0;
    by_dtype(x, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        A* o = out.vector<A>(C);
        nb::gil_scoped_release release;
        row_sums<A, T>(x.data<T>(), o, C, M, machine(threads));
    });
}

// ---- memory order

void py_turn(nb::handle x_, nb::handle y_, int threads) {
    Argument x(x_, "x"), y(y_, "y");
    x.needed(), x.dense(), y.batch_last(), same_kind(x, y);
    if (x.t.ndim != y.t.ndim) y.fail("has an unexpected shape");
    for (int d = 0; d < x.t.ndim; d++)
        if (x.size(d) != y.size(d)) y.fail("has an unexpected shape");
    const int64_t N = x.size(0), M = N ? x.numel() / N : 0;
    by_dtype(x, [&](auto, auto stored) {
        using T = decltype(stored);
        nb::gil_scoped_release release;
        turn<T>(x.data<T>(), huge(y.data<T>(), y.numel()), N, M, machine(threads));
    });
}

// ---- the machine

// Multiply-adds that this build can do at most: twelve independent chains in registers on every thread. Returns FLOP per second.
double py_peak_flops(int threads, double seconds) {
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
        const double mine = 2.0 * L * 12 * double(rounds) / taken + 1e-30 * sum<float, L>(all);  // the sum keeps the work from vanishing
#pragma omp atomic
        rate += mine;
    });
    return rate;
}

// Memory that is freed stays with the process, for the next step's activations: glibc otherwise gives large blocks back at once, and the
// kernel clears every page of them again at the next use. Returns whether the allocator took the advice.
bool keep_freed_memory() {
#if defined(__GLIBC__)
    return mallopt(M_MMAP_THRESHOLD, 1 << 30) && mallopt(M_TRIM_THRESHOLD, INT_MAX);
#else
    return false;
#endif
}

// ---- indices

// f(number) for the dtype of a matrix (rows, cols).
template <class F>
void by_matrix(const Argument& w, F&& f) {
    if (w.t.ndim != 2) w.fail("must be a matrix");
    w.dense();
    switch (w.kind()) {
        case Kind::f32: return f(float{});
        case Kind::f64: return f(double{});
        default: w.fail("must be float32 or float64");
    }
}

// The memory of an int32 vector of n entries.
int32_t* whole_numbers(const Argument& a, int64_t n) {
    if (a.kind() != Kind::i32) a.fail("must be int32");
    a.shaped({n}), a.dense();
    return a.data<int32_t>();
}

int64_t py_row_pointers(nb::handle w_, nb::handle crow_, int threads) {
    Argument w(w_, "w"), crow(crow_, "crow");
    int64_t n = 0;
    by_matrix(w, [&](auto a) {
        using T = decltype(a);
        n = row_pointers(w.data<T>(), w.size(0), w.size(1), whole_numbers(crow, w.size(0) + 1), machine(threads));
    });
    return n;
}

void py_row_columns(nb::handle w_, nb::handle crow_, nb::handle col_, int threads) {
    Argument w(w_, "w"), col(col_, "col");
    IndexArguments index(crow_, col_, nb::none());
    by_matrix(w, [&](auto a) {
        using T = decltype(a);
        const Index s = index.of(w.size(0), w.size(1));
        row_columns(w.data<T>(), s.outer, s.inner, s.ptr, col.data<int32_t>(), machine(threads));
    });
}

void py_column_order(nb::handle crow_, nb::handle col_, nb::handle ccol_, nb::handle row_, nb::handle perm_) {
    Argument crow(crow_, "crow"), ccol(ccol_, "ccol"), row(row_, "row"), perm(perm_, "perm");
    IndexArguments index(crow_, col_, nb::none());
    const int64_t cols = ccol.numel() - 1;
    const Index s = index.of(crow.numel() - 1, cols);
    for (int64_t k = 0; k < index.n(); k++)
        if (s.idx[k] < 0 || s.idx[k] >= cols) index.idx.fail("has an entry that is no column");
    column_order(s.ptr, s.idx, s.outer, cols, whole_numbers(ccol, cols + 1), whole_numbers(row, index.n()), whole_numbers(perm, index.n()));
}

void py_values_at(nb::handle w_, nb::handle crow_, nb::handle col_, nb::handle values_, int threads) {
    Argument w(w_, "w"), values(values_, "values");
    IndexArguments index(crow_, col_, nb::none());
    by_matrix(w, [&](auto a) {
        using T = decltype(a);
        const Index s = index.of(w.size(0), w.size(1));
        values_at(w.data<T>(), s.outer, s.inner, s.ptr, s.idx, values.vector<T>(index.n()), machine(threads));
    });
}

std::vector<std::string> supported() {  // instruction sets of this machine, best first, of those that there are builds for
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

#define GS_NAME2(name) name
#define GS_NAME(name) GS_NAME2(name)
#define GS_TEXT2(name) #name
#define GS_TEXT(name) GS_TEXT2(name)

NB_MODULE(GS_NAME(GS_MODULE), m) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (found >= (256 << 10)) cache_bytes = std::min<int64_t>(found, 4 << 20);
#endif
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
    m.attr("isa") = GS_TEXT(GS_ISA);
    m.attr("lanes") = LANES<float>;
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("keep_freed_memory", &keep_freed_memory);
    m.def("supported", &supported);
    m.def("cache_bytes", [] { return cache_bytes; });
    m.def("peak_flops", &py_peak_flops, nb::call_guard<nb::gil_scoped_release>());
    m.def("use_tensors_of", &use_tensors_of);
    const auto none = nb::arg().none();
    m.def("linear_forward", &py_linear_forward, none, none, none, none, none, none, nb::arg());
    m.def("linear_backward", &py_linear_backward, none, none, none, none, none, none, none, none, nb::arg());
    m.def("conv_forward", &py_conv_forward, none, none, none, none, none, none, nb::arg(), nb::arg());
    m.def("conv_backward", &py_conv_backward, none, none, none, none, none, none, none, none, nb::arg(), nb::arg());
    m.def("conv_weight", &py_conv_weight, none, none, none, none, none, nb::arg(), nb::arg());
    m.def("block_forward", &py_block_forward, none, none, none, none, none, none, nb::arg(), nb::arg(), nb::arg());
    m.def("block_backward", &py_block_backward, none, none, none, none, none, none, none, nb::arg(), nb::arg(), nb::arg());
    m.def("batch_norm_forward", &py_batch_norm_forward, none, none, none, nb::arg(), nb::arg(), none, none, none, nb::arg());
    m.def("batch_norm_backward", &py_batch_norm_backward, none, none, none, none, none, none, nb::arg(), none, none, none, nb::arg());
    m.def("row_sums", &py_row_sums, none, none, nb::arg());
    m.def("row_pointers", &py_row_pointers, none, none, nb::arg());
    m.def("row_columns", &py_row_columns, none, none, none, nb::arg());
    m.def("column_order", &py_column_order, none, none, none, none, none);
    m.def("values_at", &py_values_at, none, none, none, none, nb::arg());
    m.def("turn", &py_turn, none, none, nb::arg());
}
