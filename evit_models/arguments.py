"""Checks of what users hand to the models: messages name the argument, what it got, what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from torch import Tensor

from evit_models.layers import TEMPORAL_PADDINGS


def check_clip(x: object, weight: Tensor) -> None:
    """Raises unless `x` is a (B, 3, T, H, W) clip of the dtype and device of the model's `weight`.

    TypeError: not a tensor, or another dtype outside autocast. ValueError: wrong rank, channels, or
    an empty T, H or W. RuntimeError: another device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"input must be a Tensor of (B, 3, T, H, W), got {type(x).__name__}")
    shape = tuple(x.shape)
    if x.dim() != 5:
        hint = "; an image is a clip of one frame: image[:, :, None]" if x.dim() == 4 else ""
        raise ValueError(
            f"input must have 5 dimensions (B, 3, T, H, W), got {x.dim()}: {shape}{hint}"
        )
    if x.shape[1] != 3:
        hint = "; channels come before time" if x.shape[2] == 3 else ""
        raise ValueError(
            f"input must have 3 channels in (B, 3, T, H, W), got {x.shape[1]}: {shape}{hint}"
        )
    for axis, size in zip("THW", x.shape[2:], strict=True):
        if size == 0:
            raise ValueError(
                f"input must have at least 1 in every one of T, H, W, got {axis} = 0: {shape}"
            )
    if not x.is_floating_point():
        raise TypeError(
            f"input must be normalised floating point, as default_cfg says, got {x.dtype}"
        )
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"input is {x.dtype}, the model's weights are {weight.dtype}")
    if x.device != weight.device:
        raise RuntimeError(f"input is on {x.device}, the model's weights are on {weight.device}")


def expand_temporal_strides(
    strides: str | Sequence[int], presets: Mapping[str, tuple[int, int, int, int, int]]
) -> tuple[int, int, int, int, int]:
    """Returns the five temporal strides of a preset's name, or of a sequence of positive ints."""
    if isinstance(strides, str):
        if strides not in presets:
            known = ", ".join(map(repr, presets))
            raise ValueError(f"temporal_strides must be {known} or five ints, got {strides!r}")
        return presets[strides]
    if not isinstance(strides, Sequence):
        raise TypeError(
            f"temporal_strides must be a name or five ints, got {type(strides).__name__}"
        )
    values = tuple(value for value in strides if _is_int(value) and value >= 1)
    if len(strides) != 5 or len(values) != 5:
        raise ValueError(
            "temporal_strides must be five ints of at least 1 (stem, stages 1 to 4), "
            f"got {len(strides)}: {tuple(strides)}"
        )
    return values[0], values[1], values[2], values[3], values[4]


def check_temporal_padding(padding: str) -> None:
    """Raises ValueError unless the name of a temporal padding exists."""
    if padding not in TEMPORAL_PADDINGS:
        known = ", ".join(map(repr, TEMPORAL_PADDINGS))
        raise ValueError(f"temporal_padding must be None or one of {known}, got {padding!r}")


def check_odd(name: str, kernel: int, largest: int = 7) -> None:
    """Raises ValueError unless a kernel size is odd, so that it has a centre, and small enough."""
    sizes = range(1, largest + 1, 2)
    if not _is_int(kernel) or kernel not in sizes:
        raise ValueError(f"{name} must be one of {tuple(sizes)}, got {kernel!r}")


def check_classes(num_classes: int) -> None:
    """Raises unless a class count is an int of at least 0."""
    if not _is_int(num_classes):
        raise TypeError(f"num_classes must be an int, got {type(num_classes).__name__}")
    if num_classes < 0:
        raise ValueError(f"num_classes must be at least 0, got {num_classes}")


def check_probability(name: str, value: float) -> None:
    """Raises ValueError unless a probability of dropping is at least 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
