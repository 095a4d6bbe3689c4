"""Numerics on arrays that decide which samples are worth training on.

Read in this order: `embeddings` (the rows, block by block), `distance` (nearest centroids), `kmeans` (clusters, and clusters of
clusters), `dedup` (near-duplicates), `sampling` (a budget spread evenly over clusters), `selectors` (rules that choose rows),
`measures` (the quality of the results). `base` serves them and all other packages.

Nothing here knows Ray, SLURM, a model or a run directory.
"""
