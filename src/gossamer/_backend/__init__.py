"""The base of the products, without supports and layers.

dispatch         the choice of a kernel, with reasons; the transforms of torch that act on a call
native           the builds of the native kernels, and the choice of a build for this machine
memory           the batch-last memory format: tests, views, conversions
index            the CSR index of the non-zeros of a matrix: reference, native kernel, choice
private_torch    all uses of names that are not public in torch
"""
