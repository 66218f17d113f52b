"""From decoded frames to the tensor that a network takes: resize, crop, normalise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ClipTransform",
    "center_crop",
    "normalize",
    "resize_short_side",
    "three_crops",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize_short_side(
    frames: NDArray[np.uint8] | Tensor, size: int, *, interpolation: str = "bicubic"
) -> Tensor:
    """Scale frames, uint8 (T, H, W, C), so that the shorter side is ``size`` pixels.

    The aspect ratio is kept; ``interpolation`` is "bilinear" or "bicubic", both antialiased.

    Returns: float32 (T, C, h, w) in 0..255; bicubic overshoot is cut off there.
    """
    clip = torch.as_tensor(frames)
    if clip.dim() != 4 or clip.dtype != torch.uint8:
        raise ValueError(
            f"resize_short_side: frames have shape {tuple(clip.shape)} and dtype {clip.dtype}, "
            "expected (T, H, W, C) and torch.uint8"
        )
    if size < 1:
        raise ValueError(f"resize_short_side: size is {size}, expected 1 or more")
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(
            f"resize_short_side: interpolation is {interpolation!r}, "
            "expected 'bilinear' or 'bicubic'"
        )
    height, width = clip.shape[1:3]
    short = min(height, width)
    target = (round(height * size / short), round(width * size / short))
    pixels = clip.permute(0, 3, 1, 2).float()
    if target != (height, width):
        pixels = F.interpolate(pixels, size=target, mode=interpolation, antialias=True)
    return pixels.clamp_(0, 255)


def center_crop(clip: Tensor, size: int) -> Tensor:
    """The middle ``size`` x ``size`` pixels of (..., H, W); a view.

    Raises: ValueError where a side is shorter than ``size``.
    """
    height, width = _sides("center_crop", clip, size)
    return _crop(clip, (height - size) // 2, (width - size) // 2, size)


def three_crops(clip: Tensor, size: int) -> list[Tensor]:
    """Three ``size`` x ``size`` crops of (..., H, W) along the longer side: ends and middle."""
    height, width = _sides("three_crops", clip, size)
    middle = ((height - size) // 2, (width - size) // 2)
    if width >= height:
        corners = [(middle[0], 0), middle, (middle[0], width - size)]
    else:
        corners = [(0, middle[1]), middle, (height - size, middle[1])]
    return [_crop(clip, top, left, size) for top, left in corners]


def normalize(clip: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(0..255 clip / 255 - mean) / std, per channel, for (T, C, H, W); a new tensor."""
    if len(mean) != clip.shape[1] or len(std) != clip.shape[1]:
        raise ValueError(
            f"normalize: mean has {len(mean)} and std {len(std)} values, "
            f"the clip has {clip.shape[1]} channels"
        )
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=clip.device))
    shift = torch.tensor(mean, dtype=torch.float32, device=clip.device) * 255
    return (clip - shift.view(-1, 1, 1)) * scale.view(-1, 1, 1)


@dataclass(frozen=True)
class ClipTransform:
    """What stands between a reader and a network, as used in evaluation.

    ``size``: side of the square that the network sees, in pixels. ``crop_ratio``: the share of the
    shorter side that the square covers; the frame is scaled to ``size / crop_ratio`` first.
    ``crops``: 1 for the centre; 3 for both ends and the middle of the longer side, where the
    square covers the whole shorter side.
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_ratio: float = 0.95
    interpolation: str = "bicubic"
    crops: int = 1

    def __post_init__(self) -> None:
        if self.crops not in (1, 3):
            raise ValueError(f"ClipTransform: crops is {self.crops}, expected 1 or 3")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(
                f"ClipTransform: crop_ratio is {self.crop_ratio}, expected 0 < crop_ratio <= 1"
            )

    def __call__(self, frames: NDArray[np.uint8] | Tensor | Iterable[NDArray[np.uint8]]) -> Tensor:
        """Turn frames, uint8 (T, H, W, C) or one (H, W, C) after the other, into network input.

        Frames that come one after the other (`VideoReader.frames_at`) are scaled as they come, so
        that only small ones are kept.

        Returns: float32 (crops, C, T, size, size).
        """
        short = self.size if self.crops == 3 else max(self.size, int(self.size / self.crop_ratio))
        if isinstance(frames, (np.ndarray, Tensor)):
            clip = resize_short_side(frames, short, interpolation=self.interpolation)
        else:
            scaled = [
                resize_short_side(frame[None], short, interpolation=self.interpolation)
                for frame in frames
            ]
            if not scaled:
                raise ValueError("ClipTransform: frames is empty, expected at least one frame")
            clip = torch.cat(scaled)
        clip = normalize(clip, self.mean, self.std)
        crops = three_crops(clip, self.size) if self.crops == 3 else [center_crop(clip, self.size)]
        return torch.stack(crops).transpose(1, 2).contiguous()


def _sides(function: str, clip: Tensor, size: int) -> tuple[int, int]:
    height, width = clip.shape[-2:]
    if min(height, width) < size or size < 1:
        raise ValueError(f"{function}: size is {size}, the clip has {height} x {width} pixels")
    return height, width


def _crop(clip: Tensor, top: int, left: int, size: int) -> Tensor:
    return clip[..., top : top + size, left : left + size]
