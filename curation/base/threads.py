"""Control of the number of threads that torch uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Make torch run every operation in the block on one thread: for many small operations.

    Threads that share an operation wait for one another at its end. Where cores are shared with other processes, small
    operations then take a hundred times longer than on one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
