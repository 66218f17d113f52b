"""From an open video to the clips that a model is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from evit_models import EfficientViT3D
from evit_models.video import ClipTransform, VideoReader, view_indices


def transform_for(model: EfficientViT3D, *, size: int, crops: int = 1) -> ClipTransform:
    """The transform that the model's own configuration asks for."""
    config: dict[str, Any] = model.default_cfg
    return ClipTransform(
        size=size,
        mean=config["mean"],
        std=config["std"],
        crop_ratio=config["crop_pct"],
        interpolation=config["interpolation"],
        crops=crops,
    )


def clips(
    reader: VideoReader,
    transform: ClipTransform,
    *,
    frames: int,
    stride: int | None = None,
    views: int = 1,
) -> Iterator[Tensor]:
    """The views of a video one after the other, each (crops, C, T, size, size)."""
    for indices in view_indices(reader.info.num_frames, frames, views, stride):
        yield transform(reader.frames_at(reader.info.times(indices)))
