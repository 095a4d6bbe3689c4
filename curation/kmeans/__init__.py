"""Hierarchical k-means: seeding, Lloyd iterations, levels of clusters."""
