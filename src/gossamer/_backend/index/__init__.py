"""Indices of the non-zeros of a dense matrix: compressed rows, the same in column order, and the values."""
