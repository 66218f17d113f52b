"""Random numbers that depend on nothing but who asks: the seed, the epoch, the sample."""

from __future__ import annotations

import numpy as np

__all__ = ["sample_generator"]


def sample_generator(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """A generator that is the same in every process, for every order of samples, after a resume.

    ``index`` numbers the sample (or the step, for what happens to whole batches); ``stream``
    separates uses that must not share their numbers. All are integers of at least 0.
    """
    return np.random.default_rng((seed, epoch, index, stream))
