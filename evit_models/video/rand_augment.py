"""RandAugment of clips: the same operation, with the same strength, on all frames of a clip.

Clips are uint8 (T, H, W, 3). Operations that look at the picture (contrast, equalisation) look at
the whole clip, so that none makes a still scene flicker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

__all__ = ["OPERATIONS", "RandAugment"]

Clip = NDArray[np.uint8]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_GREY = 128.0


@dataclass(frozen=True)
class RandAugment:
    """``operations`` random operations on a clip, one after the other.

    ``magnitude``, 0 to 10, is how strong they are; each gets its own strength, normally distributed
    around it with standard deviation ``spread``. Operations with a direction (rotation, shear,
    brighter or darker) go either way. None mirrors the picture or touches the order of frames.

    Source: arXiv 1909.13719, with the operations of its table of searched transformations.
    """

    operations: int = 2
    magnitude: float = 7.0
    spread: float = 0.5

    def __post_init__(self) -> None:
        if self.operations < 0:
            raise ValueError(f"RandAugment: operations is {self.operations}, expected 0 or more")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"RandAugment: magnitude is {self.magnitude}, expected 0 to 10")
        if self.spread < 0:
            raise ValueError(f"RandAugment: spread is {self.spread}, expected 0 or more")

    def __call__(self, clip: Clip, generator: np.random.Generator) -> Clip:
        """A new clip of the same shape, uint8 (T, H, W, 3)."""
        names = list(OPERATIONS)
        for _ in range(self.operations):
            name = names[int(generator.integers(len(names)))]
            level = float(np.clip(generator.normal(self.magnitude, self.spread), 0, 10)) / 10
            sign = 1.0 if generator.random() < 0.5 else -1.0
            clip = OPERATIONS[name](clip, level, sign)
        return clip


def _auto_contrast(clip: Clip, level: float, sign: float) -> Clip:
    """Each channel stretched to 0..255."""
    low = clip.min(axis=(0, 1, 2)).astype(np.float32)
    high = clip.max(axis=(0, 1, 2)).astype(np.float32)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    low = np.where(high > low, low, 0)
    return _by_table(clip, (np.arange(256)[:, None] - low) * scale)


def _equalize(clip: Clip, level: float, sign: float) -> Clip:
    """Each channel's values spread so that all are about as frequent."""
    tables = []
    for channel in range(3):
        counts = np.bincount(clip[..., channel].ravel(), minlength=256)
        below = np.cumsum(counts) - counts
        rest = counts.sum() - counts[np.flatnonzero(counts)[-1]]
        tables.append(below * (255 / rest) if rest else np.arange(256.0))
    return _by_table(clip, np.stack(tables, axis=1))


def _posterize(clip: Clip, level: float, sign: float) -> Clip:
    return clip & np.uint8(0xFF << round(4 * level) & 0xFF)


def _solarize(clip: Clip, level: float, sign: float) -> Clip:
    """Values from a threshold on are inverted."""
    values = np.arange(256)
    return _by_table(clip, np.where(values < 256 * (1 - level), values, 255 - values)[:, None])


def _invert(clip: Clip, level: float, sign: float) -> Clip:
    return ~clip


def _brightness(clip: Clip, level: float, sign: float) -> Clip:
    return _by_table(clip, np.arange(256)[:, None] * (1 + 0.9 * sign * level))


def _contrast(clip: Clip, level: float, sign: float) -> Clip:
    middle = float((clip.mean(axis=(0, 1, 2)) * _LUMA).sum())
    return _by_table(clip, middle + (np.arange(256)[:, None] - middle) * (1 + 0.9 * sign * level))


def _color(clip: Clip, level: float, sign: float) -> Clip:
    grey = (clip @ _LUMA)[..., None]
    return _to_bytes(grey + (clip - grey) * np.float32(1 + 0.9 * sign * level))


def _sharpness(clip: Clip, level: float, sign: float) -> Clip:
    """Away from, or towards, the clip blurred by a 3 x 3 kernel; the outermost pixels stay."""
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(3, 1, 3, 3)
    blurred = pixels.clone()
    if min(clip.shape[1:3]) > 2:
        blurred[..., 1:-1, 1:-1] = F.conv2d(pixels, kernel, groups=3)
    sharper = blurred + (pixels - blurred) * (1 + 0.9 * sign * level)
    return _to_bytes(sharper.permute(0, 2, 3, 1).numpy())


def _rotate(clip: Clip, level: float, sign: float) -> Clip:
    angle = math.radians(30 * level * sign)
    cos, sin = math.cos(angle), math.sin(angle)
    return _affine(clip, (cos, -sin, 0.0), (sin, cos, 0.0))


def _shear_x(clip: Clip, level: float, sign: float) -> Clip:
    return _affine(clip, (1.0, 0.3 * level * sign, 0.0), (0.0, 1.0, 0.0))


def _shear_y(clip: Clip, level: float, sign: float) -> Clip:
    return _affine(clip, (1.0, 0.0, 0.0), (0.3 * level * sign, 1.0, 0.0))


def _translate_x(clip: Clip, level: float, sign: float) -> Clip:
    return _affine(clip, (1.0, 0.0, 0.45 * level * sign * clip.shape[2]), (0.0, 1.0, 0.0))


def _translate_y(clip: Clip, level: float, sign: float) -> Clip:
    return _affine(clip, (1.0, 0.0, 0.0), (0.0, 1.0, 0.45 * level * sign * clip.shape[1]))


#: Each takes a clip, a strength of 0 to 1 and a sign, and returns a new clip.
OPERATIONS: dict[str, Callable[[Clip, float, float], Clip]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "posterize": _posterize,
    "solarize": _solarize,
    "invert": _invert,
    "brightness": _brightness,
    "contrast": _contrast,
    "color": _color,
    "sharpness": _sharpness,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


def _by_table(clip: Clip, table: NDArray[np.floating] | NDArray[np.integer]) -> Clip:
    """Replace every value by the table's, (256, 1) for all channels or (256, 3) by channel."""
    values = _to_bytes(table)
    if values.shape[1] == 1:
        replaced: Clip = values[:, 0][clip]
        return replaced
    out = np.empty_like(clip)
    for channel in range(3):
        out[..., channel] = values[:, channel][clip[..., channel]]
    return out


def _to_bytes(values: NDArray[np.floating] | NDArray[np.integer]) -> Clip:
    clipped: Clip = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return clipped


def _affine(
    clip: Clip, row_x: tuple[float, float, float], row_y: tuple[float, float, float]
) -> Clip:
    """Each pixel from where the two rows say, in pixels from the middle; grey from outside."""
    height, width = clip.shape[1:3]
    aspect = height / width
    # affine_grid counts in halves of the frame, which are not as long in x as in y.
    theta = torch.tensor(
        [
            [row_x[0], row_x[1] * aspect, 2 * row_x[2] / width],
            [row_y[0] / aspect, row_y[1], 2 * row_y[2] / height],
        ]
    )
    grid = F.affine_grid(theta[None], [1, 3, height, width], align_corners=False)
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).float() - _GREY
    moved = F.grid_sample(
        pixels, grid.expand(len(clip), -1, -1, -1), mode="bilinear", align_corners=False
    )
    return _to_bytes((moved + _GREY).permute(0, 2, 3, 1).numpy())
