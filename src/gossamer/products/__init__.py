"""Arithmetic on tensors; knows neither modules nor optimizers.

One folder per operation. Each holds ``reference.py`` (plain torch), ``native.hpp`` with ``bind.hpp`` (C++),
``native.py`` (the same signatures as the reference) and ``op.py`` (what layers call; the kernel is chosen there).

    linear            y = x W^T for a sparse W, and its gradients
    conv2d            convolution by a sparse kernel, and its gradients
    sense             the gradient at chosen places off the support; the strongest places of all
    norm              batch normalisation on batch-last tensors

    product           what linear and conv2d share: autograd, operators of torch, FLOP formulas
    trilinear         their derivatives of any order
    dense_gradient    sparse products whose weight gradient is dense
"""
