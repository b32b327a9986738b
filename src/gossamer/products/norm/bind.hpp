// What Python sees of batch normalisation and of the gradient of a bias, (N, C, ...).
#pragma once
#include "../../_backend/native/arguments.hpp"
#include "../../_backend/native/machine.hpp"
#include "native.hpp"

namespace gs {
namespace {

void py_batch_norm_forward(nb::handle x_, nb::handle weight_, nb::handle bias_, double eps, bool relu, nb::handle y_,
                           nb::handle mean_, nb::handle invstd_, int threads) {
    Argument x(x_, "x"), weight(weight_, "weight"), bias(bias_, "bias"), y(y_, "y"), mean(mean_, "mean"),
        invstd(invstd_, "invstd");
    x.batch_last(), y.batch_last(), mean.needed(), invstd.needed(), same_kind(x, y);
    if (x.numel() != y.numel()) y.fail("has an unexpected shape");
    const int64_t C = x.size(1), M = C ? x.numel() / C : 0;
    by_dtype(x, [&](auto a, auto stored) {
        using A = decltype(a);
        if constexpr (std::is_same_v<A, decltype(stored)>) {
            const A *w = weight.vector<A>(C), *b = bias.vector<A>(C);
            A *u = mean.vector<A>(C), *i = invstd.vector<A>(C);
            nb::gil_scoped_release release;
            batch_norm_forward<A>(x.data<A>(), w, b, eps, relu, huge(y.data<A>(), y.numel()), u, i, C, M,
                                  machine(threads));
        } else {
            x.fail("must be float32 or float64");
        }
    });
}

void py_batch_norm_backward(nb::handle dy_, nb::handle x_, nb::handle weight_, nb::handle bias_, nb::handle mean_,
                            nb::handle invstd_, bool relu, nb::handle dx_, nb::handle dweight_, nb::handle dbias_,
                            int threads) {
    Argument dy(dy_, "dy"), x(x_, "x"), weight(weight_, "weight"), bias(bias_, "bias"), mean(mean_, "mean"),
        invstd(invstd_, "invstd");
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
            A *to = dx.given() ? huge(dx.data<A>(), dx.numel()) : nullptr, *dw = dweight.vector<A>(C),
              *db = dbias.vector<A>(C);
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

void bind_norm(nb::module_& m) {
    const auto none = nb::arg().none();
    m.def("batch_norm_forward", &py_batch_norm_forward, none, none, none, nb::arg(), nb::arg(), none, none, none,
          nb::arg());
    m.def("batch_norm_backward", &py_batch_norm_backward, none, none, none, none, none, none, nb::arg(), none, none,
          none, nb::arg());
    m.def("row_sums", &py_row_sums, none, none, nb::arg());
}

}  // namespace
}  // namespace gs
