"""The checks of `evit doctor` by themselves, on what only they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evit_models import create_model
from evit_models.doctor.clips import augmentation_axis, mirrored_directions
from evit_models.doctor.history import collapsed_predictions, flat_loss
from evit_models.doctor.weights import attention_without_time
from evit_models.video import ColorJitter, MixClips, RandAugment, RandomErasing, TrainTransform


@pytest.mark.parametrize(
    ("name", "strides", "frames", "verdict"),
    [
        ("efficientvit3d_b1", "original", 16, "broken"),
        ("efficientvit3d_l0", "original", 32, "broken"),
        ("efficientvit3d_l0", "tubelet", 4, "ok"),
        ("efficientvit3d_b1", "tubelet", 2, "broken"),
        ("efficientvit3d_b1", "full", 1, "unchecked"),
    ],
)
def test_extent_of_time(name: str, strides: str, frames: int, verdict: str) -> None:
    """What is computed from strides is what the network makes of a clip."""
    with torch.device("meta"):
        model = create_model(name, 3, temporal_strides=strides, backend="reference").eval()
        features = model.forward_features(torch.empty(1, 3, frames, 32, 32))
    found = attention_without_time(model, frames, "here")
    assert found.verdict == verdict
    if verdict != "unchecked":
        assert f"{features['stage4'].shape[2]} in stage4" in found.evidence


def test_unbalanced_classes_are_no_collapse() -> None:
    row = {"clips": 100, "classes": 2, "majority": 0.95, "predicted_majority": 0.96}
    found = collapsed_predictions({"class": {**row, "top1": 0.97, "mean_class": 0.8}}, "here")
    assert found.verdict == "ok"
    found = collapsed_predictions({"class": {**row, "top1": 0.93, "mean_class": 0.55}}, "here")
    assert found.verdict == "broken"
    row = {"clips": 100, "classes": 2, "majority": 0.6, "predicted_majority": 0.7}
    found = collapsed_predictions({"class": {**row, "top1": 0.55, "mean_class": 0.6}}, "here")
    assert found.verdict == "warning"


class EachFrame(TrainTransform):
    """Draws anew for every frame, as a transform of images in a loop does."""

    def __call__(self, frames: Any, generator: np.random.Generator) -> Tensor:
        one = super().__call__
        return torch.cat([one(frame[None], generator) for frame in frames], dim=1)


class MirroredTime(TrainTransform):
    """Mirrors an axis that was meant to be the width."""

    def __call__(self, frames: Any, generator: np.random.Generator) -> Tensor:
        return super().__call__(list(frames)[::-1], generator)


def cut_in_time(clips: Tensor, generator: np.random.Generator) -> Tensor:
    """CutMix written for images, (B, C, H, W), on clips: its box is in (T, H)."""
    mixed = clips.clone()
    mixed[:, :, 1:3, 4:20] = clips.roll(1, 0)[:, :, 1:3, 4:20]
    return mixed


FRAME = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_augmentation_on_the_wrong_axis() -> None:
    for transform in (EachFrame(16, flip=0.5), EachFrame(16)):
        assert augmentation_axis(transform, None, FRAME).verdict == "broken"
    found = augmentation_axis(MirroredTime(16), None, FRAME)
    assert (found.verdict, "order of the frames" in found.evidence) == ("broken", True)
    assert augmentation_axis(None, cut_in_time, FRAME).verdict == "broken"


def test_our_augmentation_is_healthy() -> None:
    full = TrainTransform(
        16, flip=0.5, rand_augment=RandAugment(magnitude=9), erasing=RandomErasing(0.5),
        color_jitter=ColorJitter(0.4, 0.4, 0.4, 0.2),
    )  # fmt: skip

    def mix(clips: Tensor, generator: np.random.Generator) -> Tensor:
        return MixClips(0.8, 1.0, 3)(clips, torch.zeros(4, dtype=torch.int64), generator)[0]

    assert augmentation_axis(full, mix, FRAME).verdict == "ok"
    assert augmentation_axis(None, None, FRAME).verdict == "ok"


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        (["turn left", "turn_right"], "broken"),
        (["Pushing something from left to right"], "broken"),
        (["rotate clockwise"], "broken"),
        (["leftover", "brightness", "copyright"], "ok"),
        (None, "unchecked"),
    ],
)
def test_directions_in_names(names: list[str] | None, verdict: str) -> None:
    assert mirrored_directions(True, names).verdict == verdict
    assert mirrored_directions(False, names).verdict == "ok"


def test_losses() -> None:
    def verdict(losses: list[float]) -> str:
        return flat_loss([{"kind": "step", "loss": loss} for loss in losses], [10]).verdict

    falls = list(np.linspace(2.4, 0.4, 50))
    assert verdict(falls) == "ok"
    assert verdict(falls + list(np.linspace(0.4, 2.2, 30))) == "broken"
    assert verdict([0.1] * 50) == "ok", "weights that had learned before"
    assert verdict([2.4] * 19) == "unchecked"
    assert verdict([2.4] * 10 + [50.0] * 20) == "broken"
