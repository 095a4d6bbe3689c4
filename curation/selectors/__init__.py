"""Selectors: rules that choose the rows of a pool to train on. One file each, named like its strategy, from its paper."""
