"""Arithmetic on tensors, without modules and optimizers.

One folder per operation. Each holds ``reference.py`` (plain torch), ``native.hpp`` with ``bind.hpp`` (C++),
``native.py`` (the same signatures as the reference) and ``op.py`` (it chooses the kernel; layers call it).

    linear            y = x W^T for a sparse W, and its gradients
    conv2d            convolution by a sparse kernel, and its gradients
    sense             the gradient at chosen blocks off the support, or at the strongest ones
    norm              batch normalisation on batch-last tensors

    product           shared by linear and conv2d: autograd, operators of torch, FLOP formulas
    trilinear         their derivatives of any order
    dense_gradient    sparse products whose weight gradient is dense
"""
