"""From a dense model to a sparse one and back."""
