"""The learning rate as a function of the step: nothing to save, nothing to lose."""

from __future__ import annotations

import math


def learning_rate_scale(step: int, *, warmup: int, total: int, final: float) -> float:
    """Returns the share of the peak learning rate at a step, counted from 0.

    It rises linearly over `warmup` steps, so that the first is 1 / warmup, then falls by half a
    cosine to `final` at the last of `total` steps (SGDR, arXiv 1608.03983, equation 5).
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
