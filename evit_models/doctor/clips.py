"""Failures that show when clips are looked at: augmentation, and what the first norm gets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evit_models.doctor.finding import Finding, some
from evit_models.doctor.weights import unsettled
from evit_models.efficientvit3d import EfficientViT3D

if TYPE_CHECKING:
    from evit_models.video.datasets import ClipDataset

#: From frames, uint8 (T, H, W, 3), to a clip (3, T, h, w).
Augment = Callable[[NDArray[np.uint8], np.random.Generator], Tensor]
#: From clips (B, 3, T, H, W) to mixed ones.
Mixed = Callable[[Tensor, np.random.Generator], Tensor]

_DRAWS, _FRAMES = 24, 6
_ROUNDING = 0.05  # about three of 255 levels, in deviations of pixels
_FAR, _RATIO = 1.5, 6.0  # of the first norm's inputs, in deviations and in variances

_DIRECTIONS = re.compile(
    r"(?:^|[^a-z])(left|right|clockwise|counterclockwise|anticlockwise)(?:wards?|hand(?:ed)?)?"
    r"(?![a-z])"
)


def augmentation_axis(
    augment: Augment | None, mix: Mixed | None, frame: NDArray[np.uint8]
) -> Finding:
    """Whether augmentation treats the frames of a clip differently, or changes their order.

    A clip whose frames are all `frame` must stay one whose frames are all equal, whatever is drawn;
    and of a clip whose first two frames alone are equal, the first two must stay so.

    Args:
        augment: what training does to the frames of a clip, or None.
        mix: what it does to a batch, or None.
        frame: uint8 (H, W, 3), best of a real video.
    """
    name = "augmentation_axis"
    if augment is None and mix is None:
        return Finding(name, "ok", "nothing is augmented")
    still = np.repeat(frame[None], _FRAMES, axis=0)
    # Later frames are darker, each by itself.
    fading = (
        still * (1 - 0.12 * np.maximum(0, np.arange(_FRAMES) - 1))[:, None, None, None]
    ).astype(np.uint8)
    differ = reordered = 0
    for draw in range(_DRAWS):
        if augment is not None:
            generator = np.random.default_rng(draw)
            differ += not _alike(augment(still, generator))
            first = augment(fading, np.random.default_rng(draw))[:, :2]
            reordered += not _alike(first)
    if mix is not None:
        clips = torch.rand(4, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        clips = clips.expand(-1, -1, _FRAMES, -1, -1).contiguous()
        for draw in range(_DRAWS):
            mixed = mix(clips, np.random.default_rng(draw))
            differ += not all(_alike(clip) for clip in mixed)
    if differ:
        return Finding(
            name,
            "broken",
            f"of {_DRAWS} draws {differ} left a clip of one repeated frame with frames that differ",
            "draw once for a clip and do the same to all its frames; a transform of images takes "
            "time for height or for a batch",
        )
    if reordered:
        return Finding(
            name,
            "broken",
            f"of {_DRAWS} draws {reordered} changed the order of the frames",
            "mirror space (the last axis), not time",
        )
    return Finding(name, "ok", f"in {_DRAWS} draws all frames of a clip were treated alike")


def mirrored_directions(flips: bool, names: Sequence[str] | None) -> Finding:
    """Whether clips are mirrored although the names of their classes have directions."""
    name = "mirrored_directions"
    if not flips:
        return Finding(name, "ok", "clips are not mirrored")
    if not names:
        return Finding(
            name,
            "unchecked",
            "clips are mirrored; the classes have no names that could tell whether they may be",
        )
    found = [one for one in names if _DIRECTIONS.search(one.lower())]
    if not found:
        return Finding(name, "ok", f"no name of {len(names)} classes has a direction")
    return Finding(
        name,
        "broken",
        f"clips are mirrored, but {len(found)} of {len(names)} classes have a direction: "
        f"{some(found)}",
        "train with flip off",
    )


def first_norm(model: EfficientViT3D, clips: Sequence[Tensor]) -> Finding:
    """Whether the first norm gets what it got in training, in mean and in variance.

    Args:
        clips: (3, T, H, W) each, as evaluation normalises them.
    """
    name = "first_norm_inputs"
    layer: Any = model.stem.downsample
    norm = layer.norm
    mean, variance = norm.running_mean, norm.running_var
    if not clips:
        return Finding(name, "unchecked", "no clip could be read")
    if not mean.any() and bool((variance == 1).all()):
        return Finding(name, "unchecked", "the first norm has no statistics yet")
    if unsettled(variance, int(norm.num_batches_tracked), share=0.1):
        return Finding(name, "unchecked", "the first norm has not settled yet")
    with torch.inference_mode():
        seen = [layer.conv(clip[None].float()) for clip in clips]
    values = torch.cat([one.transpose(0, 1).flatten(1) for one in seen], dim=1)
    spread = variance.clamp_min(1e-12)
    shift = float(((values.mean(1) - mean).abs() / spread.sqrt()).median())
    ratio = float((values.var(1) / spread).median())
    evidence = (
        f"over {len(clips)} clips its inputs are off by {shift:.2f} deviations, and their variance "
        f"is {ratio:.2f} times that of training (medians over channels)"
    )
    if shift <= _FAR and 1 / _RATIO <= ratio <= _RATIO:
        return Finding(name, "ok", evidence)
    return Finding(
        name,
        "broken",
        evidence,
        "clips are not normalised as in training: look at mean and std of the weights, at the "
        "order of colours, and whether pixels go from 0 to 1 or to 255",
    )


def sample_clips(dataset: ClipDataset, count: int) -> list[tuple[int, Tensor]]:
    """Number and first view of some readable clips of evaluation, evenly over the dataset."""
    places = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    samples = [dataset[int(place)] for place in places]
    return [(one["index"], one["video"][0]) for one in samples if one["valid"]]


def _alike(clip: Tensor) -> bool:
    """Whether all frames of (C, T, H, W) are equal, up to rounding to bytes."""
    return bool(((clip - clip[:, :1]).abs() < _ROUNDING).all())
