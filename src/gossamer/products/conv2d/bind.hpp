// What Python sees of convolutions, and of matrices and convolutions in blocks.
#pragma once
#include "../../_backend/native/arguments.hpp"
#include "../../_backend/native/machine.hpp"
#include "block.hpp"
#include "native.hpp"

namespace gs {
namespace {

// Geometry is kernel, stride, padding, dilation, each vertical, horizontal.
Conv conv_of(const Argument& image, const Argument& result, const std::vector<int64_t>& g) {
    if (g.size() != 8) throw std::invalid_argument("geometry must be eight numbers");
    for (const Argument* a : {&image, &result})
        if (a->t.ndim != 4) a->fail("must be (batch, channels, height, width)");
    Conv c{image.size(1), image.size(2), image.size(3), result.size(1), result.size(2), result.size(3), g[0],
           g[1],          g[2],          g[3],          g[4],           g[5],           g[6],           g[7]};
    const bool fits = c.KH > 0 && c.KW > 0 && c.SY > 0 && c.SX > 0 && c.DY > 0 && c.DX > 0 && c.PY >= 0 && c.PX >= 0 &&
                      c.OH == floor_div(c.H + 2 * c.PY - c.DY * (c.KH - 1) - 1, c.SY) + 1 &&
                      c.OW == floor_div(c.W + 2 * c.PX - c.DX * (c.KW - 1) - 1, c.SX) + 1 &&
                      image.size(0) == result.size(0) && std::min({c.C, c.H, c.W, c.O, c.OH, c.OW}) > 0;
    if (!fits) result.fail("has not the size that this geometry gives");
    return c;
}

void py_conv_forward(nb::handle x_, nb::handle values_, nb::handle bias_, nb::handle y_, nb::handle crow,
                     nb::handle col, const std::vector<int64_t>& geometry, int threads) {
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

void py_conv_backward(nb::handle dy_, nb::handle x_, nb::handle values_, nb::handle dx_, nb::handle dw_,
                      nb::handle ccol, nb::handle row, nb::handle perm, const std::vector<int64_t>& geometry,
                      int threads) {
    Argument dy(dy_, "dy"), x(x_, "x"), values(values_, "values"), dx(dx_, "dx"), dw(dw_, "dw");
    IndexArguments index(ccol, row, perm);
    if (!dx.given() || !values.given() || !index.perm.given())
        dx.fail(", values and perm are needed (conv_weight makes dw alone)");
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
        conv_backward<A, T>(dy.data<T>(), x.data<T>(), v, huge(dx.data<T>(), dx.numel()), w, s, g, dx.size(0),
                            machine(threads));
    });
}

void py_conv_weight(nb::handle dy_, nb::handle x_, nb::handle dw_, nb::handle crow, nb::handle col,
                    const std::vector<int64_t>& geometry, int threads) {
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

// ---- blocks of h x w: a matrix is an image of one pixel, its geometry is not given

struct BlockArguments {
    Conv g;
    Blocks s;
    BlockArguments(const Argument& image, const Argument& result, const IndexArguments& index,
                   const std::vector<int64_t>& block, const std::vector<int64_t>& geometry) {
        image.batch_last(), result.batch_last(), same_kind(image, result);
        if (block.size() != 2 || block[0] < 1 || block[1] < 1)
            throw std::invalid_argument("block must be two positive numbers");
        if (geometry.empty()) {
            g = {image.size(1), 1, 1, result.size(1), 1, 1, 1, 1, 1, 1, 0, 0, 1, 1};
            image.shaped({result.size(0), g.C}), result.shaped({image.size(0), g.O});
        } else {
            g = conv_of(image, result, geometry);
        }
        const int64_t rows = g.O, cols = g.C * g.KH * g.KW;
        s = {index.of(ceil_div(rows, block[0]), ceil_div(cols, block[1])), block[0], block[1], rows, cols};
    }
    int64_t n() const { return int64_t(s.index.ptr[s.index.outer]) * s.h * s.w; }
};

void py_block_forward(nb::handle x_, nb::handle values_, nb::handle bias_, nb::handle y_, nb::handle crow,
                      nb::handle col, const std::vector<int64_t>& block, const std::vector<int64_t>& geometry,
                      int threads) {
    Argument x(x_, "x"), values(values_, "values"), bias(bias_, "bias"), y(y_, "y");
    IndexArguments index(crow, col, nb::none());
    const BlockArguments in(x, y, index, block, geometry);
    by_dtype(x, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        const A *v = values.vector<A>(in.n()), *b = bias.vector<A>(in.s.rows);
        if (!values.given()) values.fail("are needed");
        nb::gil_scoped_release release;
        block_forward<A, T>(x.data<T>(), v, b, huge(y.data<T>(), y.numel()), in.s, in.g, x.size(0), machine(threads));
    });
}

void py_block_backward(nb::handle dy_, nb::handle x_, nb::handle values_, nb::handle dx_, nb::handle dw_,
                       nb::handle crow, nb::handle col, const std::vector<int64_t>& block,
                       const std::vector<int64_t>& geometry, int threads) {
    Argument dy(dy_, "dy"), x(x_, "x"), values(values_, "values"), dx(dx_, "dx"), dw(dw_, "dw");
    IndexArguments index(crow, col, nb::none());
    if (dw.given() && !x.given()) x.fail("is needed for dw");
    if (dx.given() && !values.given()) values.fail("are needed for dx");
    const BlockArguments in(dx.given() ? dx : x, dy, index, block, geometry);
    if (dx.given() && x.given()) BlockArguments(x, dy, index, block, geometry);
    by_dtype(dy, [&](auto a, auto stored) {
        using A = decltype(a);
        using T = decltype(stored);
        const A* v = values.vector<A>(in.n());
        A* w = dw.vector<A>(in.n());
        const Machine m = machine(threads);
        nb::gil_scoped_release release;
        if (dx.given()) block_input<A, T>(dy.data<T>(), v, huge(dx.data<T>(), dx.numel()), in.s, in.g, dy.size(0), m);
        if (w) block_weight<A, T>(dy.data<T>(), x.data<T>(), w, in.s, in.g, dy.size(0), m);
    });
}

void bind_conv2d(nb::module_& m) {
    const auto none = nb::arg().none();
    m.def("conv_forward", &py_conv_forward, none, none, none, none, none, none, nb::arg(), nb::arg());
    m.def("conv_backward", &py_conv_backward, none, none, none, none, none, none, none, none, nb::arg(), nb::arg());
    m.def("conv_weight", &py_conv_weight, none, none, none, none, none, nb::arg(), nb::arg());
    m.def("block_forward", &py_block_forward, none, none, none, none, none, none, nb::arg(), nb::arg(), nb::arg());
    m.def("block_backward", &py_block_backward, none, none, none, none, none, none, none, nb::arg(), nb::arg(),
          nb::arg());
}

}  // namespace
}  // namespace gs
