"""What every dataset of clips offers, and what a sample is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from os import PathLike, fspath
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from evit_models.video.seeds import sample_generator

__all__ = ["ClipDataset", "DatasetError", "Label", "Sample", "TooManyBadVideos"]

#: A class number, or one for every head of a model with several.
Label = int | dict[str, int]


class Sample(TypedDict):
    """One item of a dataset; PyTorch's default collate makes a batch of it.

    ``video``: float32, normalised, (3, T, H, W) in training, (views, 3, T, H, W) in evaluation.
    ``label``: its class; one per head where there are several. ``index``: the number that was asked
    for. ``valid``: False where evaluation could not read the video; it is zeros then, and must be
    counted, not scored. ``source``: the file or name that the clip is from; in training this may be
    a replacement, and so its label. ``error``: why the video asked for could not be read, else "".
    """

    video: Tensor
    label: Label
    index: int
    valid: bool
    source: str
    error: str


class DatasetError(ValueError):
    """A list, a table or a folder does not describe a dataset; names the file and the line."""

    def __init__(
        self, path: str | PathLike[str], reason: str | None = None, line: int | None = None
    ) -> None:
        # A loader's worker sends only the text; then there is no reason apart from it.
        place = fspath(path) if line is None else f"{fspath(path)}, line {line}"
        super().__init__(place if reason is None else f"{place}: {reason}")
        self.line = line


class TooManyBadVideos(RuntimeError):
    """More videos cannot be read than training may replace."""


class ClipDataset(Dataset[Sample], ABC):
    """A dataset of clips with their classes.

    ``num_classes``, ``class_names`` and ``labels`` (a class number for every sample) are dicts by
    head where a model has several heads. What is random in sample ``index`` depends on ``seed``,
    the epoch and ``index`` alone, so that a resumed run draws what an uninterrupted one draws.
    """

    num_classes: int | dict[str, int]
    class_names: list[str] | dict[str, list[str]] | None
    labels: list[int] | dict[str, list[int]]

    def __init__(self, *, training: bool, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"{type(self).__name__}: seed is {seed}, expected 0 or more")
        self.training = training
        self.seed = seed
        # In shared memory: workers that live longer than an epoch must see it change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    @property
    def epoch(self) -> int:
        """The epoch that `set_epoch` was last told; 0 at first."""
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose what is random in the samples that are read from now on, in every worker too.

        Call it between epochs: samples that are under way may be of either.
        """
        if epoch < 0:
            raise ValueError(f"set_epoch: epoch is {epoch}, expected 0 or more")
        self._epoch[0] = epoch

    def label_of(self, index: int) -> Label:
        """The label of one sample, without reading its video."""
        if isinstance(self.labels, dict):
            return {head: labels[index] for head, labels in self.labels.items()}
        return self.labels[index]

    def _generator(self, index: int, stream: int = 0) -> np.random.Generator:
        return sample_generator(self.seed, self.epoch, index, stream)

    def _check_index(self, index: int) -> None:
        # IndexError is what ends a plain loop over a dataset.
        if not 0 <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index is {index}, there are {len(self)}")
