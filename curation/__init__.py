"""Numerics on arrays: what decides which samples are worth training on.

Read in this order: `source` (where rows come from), `kmeans`, `hierarchy` (k-means of k-means), `sampling` (a budget
spread evenly over the hierarchy), `quality` (what the result is worth). `rng`, `collectives`, `files` and `errors` serve
them and every package to the left.

Nothing here knows Ray, SLURM, a model or a run directory.
"""
