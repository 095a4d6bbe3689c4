"""Labelers: pseudo-labels for every row of a pool. One file each, from its paper; all are called alike."""
