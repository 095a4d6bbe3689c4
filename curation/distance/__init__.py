"""Nearest centroids: products, GPU kernels, and the check that makes labels exact."""
