"""Long tails: how many samples of each class make a pool as uneven as those of the world."""

import numpy as np


def long_tail_counts(sizes: np.ndarray, factor: float) -> np.ndarray:
    """How many of each class (C,) to keep so that counts follow Zipf's law, the first `factor` times the last."""
    shares = np.arange(1, len(sizes) + 1) ** (-np.log(factor) / np.log(max(len(sizes), 2)))
    return np.maximum(1, np.floor((sizes / shares).min() * shares)).astype(np.int64)
