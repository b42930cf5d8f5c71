"""Kernels for CUDA, in Triton, and what launches them."""
