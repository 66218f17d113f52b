"""Which clips a step takes: a function of seed, epoch and step, so that any step can be resumed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evit_models.training.errors import ConfigError


class StepSampler(NamedTuple):
    """The order of training clips, cut into steps, ranks and batches.

    Args:
        length: clips in the dataset.
        batch_size: clips in a batch. accumulation: batches of a process in one step.
        rank, world: this process, and how many there are.
        seed: with the epoch it decides the order.

    What is left of an epoch after the last whole step is dropped, other clips in every epoch.
    """

    length: int
    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    seed: int = 0

    @property
    def clips_per_step(self) -> int:
        """Clips that all processes take in one step."""
        return self.batch_size * self.accumulation * self.world

    @property
    def steps(self) -> int:
        """Steps of an epoch; a ConfigError where there is not even one."""
        if self.length < self.clips_per_step:
            raise ConfigError(
                f"batch_size: a step takes {self.clips_per_step} clips ({self.batch_size} x "
                f"{self.accumulation} batches x {self.world} processes), the training data has "
                f"{self.length}"
            )
        return self.length // self.clips_per_step

    def batches(self, epoch: int, first_step: int = 0) -> list[list[int]]:
        """Returns this process's batches of an epoch from a step on, `accumulation` a step."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        order = order[: self.steps * self.clips_per_step]
        shape = (self.steps, self.world, self.accumulation, self.batch_size)
        mine = order.reshape(shape)[first_step:, self.rank]
        batches: list[list[int]] = mine.reshape(-1, self.batch_size).tolist()
        return batches


def evaluation_shard(length: int, rank: int, world: int) -> range:
    """Returns the clips that a process evaluates: every clip belongs to exactly one process.

    Shards may differ by one clip. Nothing is padded: evaluation meets the other processes only
    when all are done, so that no clip has to be counted twice.
    """
    return range(rank, length, world)
