"""Hierarchical k-means: seeding, Lloyd's iterations, levels of clusters."""
