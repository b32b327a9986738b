"""What products are made with; knows neither supports nor layers.

dispatch         kernels with reasons: which one runs, and what else acts on a call
native           the builds of the native kernels, and which of them runs on this machine
memory           the batch-last memory format: tests, views, conversions
index            the CSR index of a matrix's non-zeros: reference, native kernel, choice
private_torch    every use of a name of torch that is not public
"""
