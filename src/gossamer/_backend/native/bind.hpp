// What Python sees of the machine and of memory order.
#pragma once
#include "arguments.hpp"
#include "machine.hpp"
#include "turn.hpp"

namespace gs {
namespace {

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

void bind_machine(nb::module_& m) {
    const auto none = nb::arg().none();
    m.def("use_tensors_of", &use_tensors_of);
    m.def("supported", &supported);
    m.def("cache_bytes", [] { return cache_bytes; });
    m.def("keep_freed_memory", &keep_freed_memory);
    m.def("peak_flops", &peak_flops, nb::call_guard<nb::gil_scoped_release>());
    m.def("turn", &py_turn, none, none, nb::arg());
}

}  // namespace
}  // namespace gs
