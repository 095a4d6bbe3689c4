"""The device to compute on."""

import torch


def default_device() -> torch.device:
    """The current GPU of this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
