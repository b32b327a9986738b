"""Indices: the compressed rows of a dense matrix's non-zeros, the same in column order, and the values there."""
