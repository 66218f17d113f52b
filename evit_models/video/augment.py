"""What training does to a clip before a network sees it; every frame of a clip in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .rand_augment import RandAugment
from .transform import IMAGENET_MEAN, IMAGENET_STD, normalize

__all__ = ["ColorJitter", "RandomErasing", "TrainTransform", "random_box"]

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# RGB to luma and two colour differences, in which hue is an angle (NTSC, YIQ).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, one draw for a whole clip.

    Factors are drawn from [1 - amount, 1 + amount], never below 0; ``hue`` is in turns of the
    colour circle, at most 0.5, drawn from [-hue, hue]. Contrast is around the mean grey of the
    clip.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"ColorJitter: {name} is {getattr(self, name)}, expected 0 or more"
                )
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"ColorJitter: hue is {self.hue}, expected 0 to 0.5")

    def __call__(
        self, clip: NDArray[np.uint8], generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        """A new clip, uint8 (T, H, W, 3): all four are one affine map of colours."""
        bright, contrast, saturation = (
            max(0.0, 1 + amount * generator.uniform(-1, 1))
            for amount in (self.brightness, self.contrast, self.saturation)
        )
        angle = 2 * math.pi * self.hue * generator.uniform(-1, 1)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        grey = np.tile(_LUMA, (3, 1))
        paint = np.linalg.inv(_YIQ) @ turn @ _YIQ @ (grey + saturation * (np.eye(3) - grey))
        middle = float(clip.mean(axis=(0, 1, 2)) @ _LUMA) * bright
        matrix = (bright * contrast * paint).astype(np.float32)
        shift = (middle * (1 - contrast) * paint.sum(axis=1)).astype(np.float32)
        colors = clip.reshape(-1, 3).astype(np.float32) @ matrix.T
        colors += shift
        np.clip(np.rint(colors, out=colors), 0, 255, out=colors)
        painted: NDArray[np.uint8] = colors.astype(np.uint8).reshape(clip.shape)
        return painted


@dataclass(frozen=True)
class RandomErasing:
    """With ``probability``, a box of noise, the same box and noise in every frame.

    The box has between ``area[0]`` and ``area[1]`` of the frame, sides in a ratio of at most
    ``ratio``. Noise is standard normal, like the pixels after normalisation; it stands still, so
    that it adds no motion. Source: arXiv 1708.04896, algorithm 1.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: float = 10 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"RandomErasing: probability is {self.probability}, expected 0 to 1")
        if not 0 < self.area[0] <= self.area[1] <= 1 or self.ratio < 1:
            raise ValueError(
                f"RandomErasing: area is {self.area} and ratio {self.ratio}, expected "
                "0 < least <= most <= 1 and a ratio of 1 or more"
            )

    def __call__(self, clip: Tensor, generator: np.random.Generator) -> Tensor:
        """The same tensor, (C, T, H, W), changed in place."""
        if generator.random() >= self.probability:
            return clip
        channels, _, height, width = clip.shape
        top, left, tall, wide = random_box(
            height, width, self.area, (1 / self.ratio, self.ratio), generator
        )
        noise = torch.from_numpy(
            generator.standard_normal((channels, 1, tall, wide), dtype=np.float32)
        )
        clip[:, :, top : top + tall, left : left + wide] = noise
        return clip


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, resize, and what else is asked for, with the checkpoint's pixel statistics.

    ``size``: side of the square that the network sees. ``scale`` and ``ratio``: share of the
    frame's area, and width over height, of the box that is cut out and resized to it. ``flip``: the
    probability of a mirror image, 0 unless asked for, since many labels have a direction. The order
    is crop, flip, ``rand_augment``, ``color_jitter``, normalise, ``erasing``.
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rand_augment: RandAugment | None = None
    color_jitter: ColorJitter | None = None
    erasing: RandomErasing | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"TrainTransform: size is {self.size}, expected 1 or more")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"TrainTransform: scale is {self.scale}, expected 0 < least <= most <= 1"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"TrainTransform: ratio is {self.ratio}, expected 0 < least <= most")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"TrainTransform: flip is {self.flip}, expected 0 to 1")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"TrainTransform: interpolation is {self.interpolation!r}, "
                "expected 'bilinear' or 'bicubic'"
            )

    def __call__(
        self,
        frames: NDArray[np.uint8] | Iterable[NDArray[np.uint8]],
        generator: np.random.Generator,
    ) -> Tensor:
        """Turn frames, uint8 (T, H, W, 3) or one (H, W, 3) after the other, into network input.

        Frames that come one after the other are cut and scaled as they come, so that only small
        ones are kept.

        Returns: float32 (3, T, size, size). Raises: ValueError for no frames.
        """
        clip = self._cut(frames, generator)
        if generator.random() < self.flip:
            clip = np.ascontiguousarray(clip[:, :, ::-1])
        if self.rand_augment is not None:
            clip = self.rand_augment(clip, generator)
        if self.color_jitter is not None:
            clip = self.color_jitter(clip, generator)
        pixels = torch.from_numpy(clip).permute(0, 3, 1, 2).contiguous()
        video = normalize(pixels, self.mean, self.std).transpose(0, 1).contiguous()
        if self.erasing is not None:
            video = self.erasing(video, generator)
        return video

    def _cut(
        self, frames: Iterable[NDArray[np.uint8]], generator: np.random.Generator
    ) -> NDArray[np.uint8]:
        """One random box of all frames, uint8 (T, size, size, 3)."""
        box: tuple[int, int, int, int] | None = None
        scaled = []
        for frame in frames:
            if box is None:
                box = random_box(frame.shape[0], frame.shape[1], self.scale, self.ratio, generator)
            top, left, height, width = box
            part = torch.from_numpy(frame[top : top + height, left : left + width])
            pixels = part.permute(2, 0, 1)[None]
            if (height, width) != (self.size, self.size):
                pixels = F.interpolate(
                    pixels, size=(self.size, self.size), mode=self.interpolation, antialias=True
                )
            scaled.append(pixels)
        if not scaled:
            raise ValueError("TrainTransform: frames is empty, expected at least one frame")
        return np.ascontiguousarray(torch.cat(scaled).permute(0, 2, 3, 1).numpy())


def random_box(
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """A box in a frame: top, left, height, width (Inception's crop, arXiv 1409.4842, section 6).

    Its share of the area is drawn evenly from ``area``, its width over height log-evenly from
    ``ratio``. Where ten draws do not fit, it is the largest box of such a ratio, in the middle.
    """
    for _ in range(10):
        target = generator.uniform(*area) * height * width
        shape = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        wide, tall = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(generator.integers(0, height - tall + 1))
            left = int(generator.integers(0, width - wide + 1))
            return top, left, tall, wide
    shape = min(max(width / height, ratio[0]), ratio[1])
    wide = max(1, min(width, round(height * shape)))
    tall = max(1, min(height, round(width / shape)))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
