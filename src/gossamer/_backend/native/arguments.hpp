// Arguments that come from Python: tensors, indices. A wrong one raises an exception with a sentence.
//
// Tensors come in by DLPack's C exchange API (version 1.3: a view of a live tensor, some 50 ns; the older __dlpack__()
// call costs 4 us, more than a small layer's arithmetic). Nothing of libtorch is linked: one build serves every torch
// that has that API. Shapes, dtypes and strides are checked here. That the entries of an index lie within the matrix is
// what a Support guarantees (Support.from_index verifies it).
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../index/native.hpp"
#include "vec.hpp"

namespace gs {
namespace {  // module.cpp alone includes this

namespace nb = nanobind;

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
    if (!api || !api->view_from_object)
        throw std::runtime_error("this torch offers no DLPack exchange API of version 1");
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
    [[noreturn]] void fail(const std::string& what) const {
        throw std::invalid_argument(std::string(name) + " " + what);
    }
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

struct IndexArguments {
    Argument ptr, idx, perm;
    IndexArguments(nb::handle ptr, nb::handle idx, nb::handle perm)
        : ptr(ptr, "crow"), idx(idx, "col"), perm(perm, "perm") {}
    Index of(int64_t outer, int64_t inner) const {
        for (const Argument* a : {&ptr, &idx, &perm})
            if (a->given()) {
                if (a->kind() != Kind::i32) a->fail("must be int32");
                a->dense();
            }
        idx.needed();
        ptr.shaped({outer + 1});
        if (perm.given() && perm.numel() != idx.numel()) perm.fail("has an unexpected number of entries");
        const Index s{ptr.data<int32_t>(), idx.data<int32_t>(), perm.given() ? perm.data<int32_t>() : nullptr, outer,
                      inner};
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

}  // namespace
}  // namespace gs
