"""Mixup and CutMix of clips, with labels that say exactly how much of each clip is there."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["MixClips"]

#: Labels or class counts: one, or one for every head.
Labels = TypeVar("Labels", Tensor, dict[str, Tensor])


class MixClips:
    """Mixes every clip of a batch with its neighbour, by Mixup, by CutMix, or by either.

    ``mixup_alpha``, ``cutmix_alpha``: parameters of the Beta distribution that the share of a clip
    is drawn from; 0 turns that kind off, and with both on each batch takes one of them, as likely
    as the other. CutMix cuts space, the same box in every frame, so that no motion is cut apart;
    its weight is the true share of pixels, after the box has been cut off at the border.
    ``num_classes``: of the head, or of every head by name. ``label_smoothing`` spreads that share
    of every target evenly over all classes.

    Sources: Mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899, section 3.1.
    """

    def __init__(
        self,
        mixup_alpha: float,
        cutmix_alpha: float,
        num_classes: int | dict[str, int],
        label_smoothing: float = 0.0,
    ) -> None:
        for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if not 0 <= alpha < float("inf"):
                raise ValueError(f"MixClips: {name} is {alpha}, expected 0 or more")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"MixClips: label_smoothing is {label_smoothing}, expected 0 <= label_smoothing < 1"
            )
        self.mixup_alpha, self.cutmix_alpha = mixup_alpha, cutmix_alpha
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def __call__(
        self, clips: Tensor, labels: Labels, generator: np.random.Generator
    ) -> tuple[Tensor, Labels]:
        """Mix a batch, (B, C, T, H, W), and make soft targets of its labels, int64 (B,).

        ``generator`` is best `seeds.sample_generator` of the seed, the epoch and the step.

        Returns: the clips, a new tensor of the same memory format (the same tensor where nothing is
        mixed), and float32 (B, classes), by head if the labels are. Raises: ValueError.
        """
        if clips.dim() != 5:
            raise ValueError(
                f"MixClips: clips have shape {tuple(clips.shape)}, expected (B, C, T, H, W)"
            )
        mixed, share = self._mix(clips, generator)
        if isinstance(labels, dict):
            if not isinstance(self.num_classes, dict) or labels.keys() != self.num_classes.keys():
                raise ValueError(
                    f"MixClips: labels have the heads {sorted(labels)}, "
                    f"num_classes is {self.num_classes}"
                )
            classes = self.num_classes
            return mixed, {h: self._targets(labels[h], classes[h], share, clips) for h in labels}
        if isinstance(self.num_classes, dict):
            raise ValueError(f"MixClips: labels have no heads, num_classes is {self.num_classes}")
        return mixed, self._targets(labels, self.num_classes, share, clips)

    def _mix(self, clips: Tensor, generator: np.random.Generator) -> tuple[Tensor, float]:
        """The mixed clips, and the share of its own clip that each keeps."""
        cut, blend = self.cutmix_alpha > 0, self.mixup_alpha > 0
        # Drawn in any case: turning one kind off leaves the numbers of the other as they were.
        choice = generator.random()
        if cut and blend:
            cut = choice < 0.5
        if len(clips) < 2 or not (cut or blend):
            return clips, 1.0
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        share = float(generator.beta(alpha, alpha))
        partners = clips.roll(1, 0)
        if not cut:
            return torch.lerp(partners, clips, share), share
        height, width = clips.shape[-2:]
        top, bottom, left, right = _box(height, width, 1 - share, generator)
        mixed = clips.clone(memory_format=torch.preserve_format)
        mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)

    def _targets(self, labels: Tensor, classes: int, share: float, clips: Tensor) -> Tensor:
        if labels.shape != clips.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"MixClips: labels have shape {tuple(labels.shape)} and dtype {labels.dtype}, "
                f"expected ({len(clips)},) and torch.int64"
            )
        targets = torch.full(
            (len(labels), classes), self.label_smoothing / classes, device=labels.device
        )
        rest = 1 - self.label_smoothing
        for weight, chosen in ((share, labels), (1 - share, labels.roll(1, 0))):
            weights = torch.full((len(labels), 1), weight * rest, device=labels.device)
            targets.scatter_add_(1, chosen[:, None], weights)
        return targets


def _box(
    height: int, width: int, area: float, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box with this share of the frame, cut off at its border."""
    side = area**0.5
    y, x = int(generator.integers(height)), int(generator.integers(width))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    return (
        max(0, y - half_height),
        min(height, y + half_height),
        max(0, x - half_width),
        min(width, x + half_width),
    )
