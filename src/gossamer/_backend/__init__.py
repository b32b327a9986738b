"""What runs a product: dispatch with reasons, builds of the native kernels, memory formats, the index."""
