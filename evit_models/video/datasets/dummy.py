"""Clips of noise with the right shapes: what a training loop costs when data costs nothing."""

from __future__ import annotations

import torch

from .base import ClipDataset, Sample

__all__ = ["DummyClips"]


class DummyClips(ClipDataset):
    """``clips`` samples that are all the same noise, (3, frames, size, size), with labels in turn.

    In evaluation every sample is one view, (1, 3, frames, size, size). Nothing is decoded or drawn
    in `__getitem__`: what is left is the cost of workers, collation and copies.
    """

    def __init__(
        self,
        clips: int,
        frames: int = 16,
        size: int = 224,
        num_classes: int = 400,
        *,
        training: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(training=training, seed=seed)
        counts = {"clips": clips, "frames": frames, "size": size, "num_classes": num_classes}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"DummyClips: {name} is {value}, expected 1 or more")
        self.num_classes: int = num_classes
        self.class_names = None
        self.labels: list[int] = [index % num_classes for index in range(clips)]
        shape = (3, frames, size, size) if training else (1, 3, frames, size, size)
        self._video = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        self._check_index(index)
        return Sample(
            video=self._video,
            label=self.labels[index],
            index=index,
            valid=True,
            source=f"noise {index}",
            error="",
        )
