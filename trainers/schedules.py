"""Schedules as pure functions of the step."""

import math


def cosine(step: float, total: float, start: float, end: float) -> float:
    """The value at `step` on half a cosine from `start` at step 0 to `end` at `total`; `end` afterwards."""
    progress = min(1.0, step / total) if total > 0 else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear(step: float, total: float, start: float, end: float) -> float:
    """The value at `step` on a line from `start` at step 0 to `end` at `total`; `end` afterwards."""
    return start + (end - start) * (min(1.0, step / total) if total > 0 else 1.0)


def warmup_cosine(step: float, total: float, warmup: float, peak: float, end: float) -> float:
    """The value at `step` on a line from 0 to `peak` over `warmup` steps, then on half a cosine to `end` at `total`."""
    if step < warmup:
        return peak * step / warmup
    return cosine(step - warmup, total - warmup, peak, end)
