"""Arithmetic on tensors: knows no module and no optimizer. One folder per operation, the reference kernel beside its faster counterparts."""
