// What Python sees of the linear products.
#pragma once
#include "../../_backend/native/arguments.hpp"
#include "../../_backend/native/machine.hpp"
#include "native.hpp"

namespace gs {
namespace {

void py_linear_forward(nb::handle x_, nb::handle values_, nb::handle bias_, nb::handle y_, nb::handle crow,
                       nb::handle col, int threads) {
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

void py_linear_backward(nb::handle dy_, nb::handle x_, nb::handle values_, nb::handle dx_, nb::handle dw_,
                        nb::handle ptr, nb::handle idx, nb::handle perm, int threads) {
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

void bind_linear(nb::module_& m) {
    const auto none = nb::arg().none();
    m.def("linear_forward", &py_linear_forward, none, none, none, none, none, none, nb::arg());
    m.def("linear_backward", &py_linear_backward, none, none, none, none, none, none, none, none, nb::arg());
}

}  // namespace
}  // namespace gs
