"""Nearest centroids: the products, the kernels, and the check that makes labels exact."""
