"""Selectors: which rows of a pool to train on. One file each, from its paper; all are called alike."""
