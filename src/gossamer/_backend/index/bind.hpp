// What Python sees of indices.
#pragma once
#include "../native/arguments.hpp"
#include "../native/machine.hpp"
#include "native.hpp"

namespace gs {
namespace {

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
    column_order(s.ptr, s.idx, s.outer, cols, whole_numbers(ccol, cols + 1), whole_numbers(row, index.n()),
                 whole_numbers(perm, index.n()));
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

void bind_index(nb::module_& m) {
    const auto none = nb::arg().none();
    m.def("row_pointers", &py_row_pointers, none, none, nb::arg());
    m.def("row_columns", &py_row_columns, none, none, none, nb::arg());
    m.def("column_order", &py_column_order, none, none, none, none, none);
    m.def("values_at", &py_values_at, none, none, none, none, nb::arg());
}

}  // namespace
}  // namespace gs
