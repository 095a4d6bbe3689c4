"""How many threads an operation is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch uses one thread for every operation: for small ones, and many.

    Threads that share an operation wait for one another at its end. Where cores are shared with other processes, small
    operations then take a hundred times longer than alone.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
