"""Triton kernels of `encode`: a product, bounds on its rounding, candidates, exact sums."""
