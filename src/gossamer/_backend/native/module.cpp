// The extension module: one for each instruction set, compiled from this file. The bindings of each product lie beside
// its kernels.
#include <nanobind/nanobind.h>

#include "../../products/conv2d/bind.hpp"
#include "../../products/linear/bind.hpp"
#include "../../products/norm/bind.hpp"
#include "../index/bind.hpp"
#include "bind.hpp"

#define GS_NAME2(name) name
#define GS_NAME(name) GS_NAME2(name)
#define GS_TEXT2(name) #name
#define GS_TEXT(name) GS_TEXT2(name)

NB_MODULE(GS_NAME(GS_MODULE), m) {
    gs::look_at_machine();
    m.attr("isa") = GS_TEXT(GS_ISA);
    m.attr("lanes") = gs::LANES<float>;
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    gs::bind_machine(m);
    gs::bind_index(m);
    gs::bind_linear(m);
    gs::bind_conv2d(m);
    gs::bind_norm(m);
}
