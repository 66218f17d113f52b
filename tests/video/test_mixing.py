"""Mixed clips and their labels: weights are the shares of pixels, and time is never cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evit_models.video.mixing import MixClips

LABELS = torch.tensor([2, 0, 1, 2])


def _constant_clips(height: int = 12, width: int = 20) -> Tensor:
    """Clip b is b + 1 everywhere, so that every pixel of a mix says where it is from."""
    return torch.arange(1.0, 5.0).view(4, 1, 1, 1, 1).expand(4, 3, 5, height, width).contiguous()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 1.0, 4.0]), st.integers(1, 40))
def test_cutmix_weighs_by_the_pixels_that_are_there(seed: int, alpha: float, width: int) -> None:
    clips = _constant_clips(12, width)
    mixed, targets = MixClips(0, alpha, 3)(clips, LABELS, np.random.default_rng(seed))
    for own in range(4):
        partner = (own - 1) % 4
        share = (mixed[own] == own + 1).float().mean().item()
        assert (mixed[own] == partner + 1).float().mean().item() == pytest.approx(1 - share)
        expected = torch.zeros(3)
        expected[LABELS[own]] += share
        expected[LABELS[partner]] += 1 - share
        torch.testing.assert_close(targets[own], expected)
    # The same box in every frame and channel.
    assert (mixed == mixed[:, :1, :1]).all()
    assert torch.equal(clips, _constant_clips(12, width))


@given(st.integers(0, 2**32 - 1))
def test_mixup_weighs_by_the_blend(seed: int) -> None:
    mixed, targets = MixClips(0.8, 0, 3)(_constant_clips(), LABELS, np.random.default_rng(seed))
    assert (mixed == mixed[:, :1, :1, :1, :1]).all()
    share = mixed[1, 0, 0, 0, 0].item() - 1  # clips 2 and 1
    torch.testing.assert_close(targets[1], torch.tensor([share, 0.0, 1 - share]))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_both_kinds_take_turns() -> None:
    mix = MixClips(0.8, 1.0, 3)
    kinds = set()
    for step in range(20):
        mixed, _ = mix(_constant_clips(), LABELS, np.random.default_rng(step))
        kinds.add("mixup" if (mixed == mixed[..., :1, :1]).all() else "cutmix")
    assert kinds == {"mixup", "cutmix"}


def test_the_same_generator_mixes_the_same() -> None:
    clips = torch.rand(4, 3, 2, 8, 8)
    one, two = (MixClips(0.8, 1.0, 3)(clips, LABELS, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_smoothing_is_spread_over_all_classes() -> None:
    clips = _constant_clips()
    same, targets = MixClips(0, 0, 4, 0.2)(clips, LABELS, np.random.default_rng(0))
    assert same is clips
    torch.testing.assert_close(targets[0], torch.tensor([0.05, 0.05, 0.85, 0.05]))
    smooth, exact = (
        MixClips(0.8, 0, 4, s)(clips, LABELS, np.random.default_rng(1))[1] for s in (0.2, 0.0)
    )
    torch.testing.assert_close(smooth, 0.8 * exact + 0.05)


def test_heads_get_targets_of_their_own() -> None:
    labels = {"verb": torch.tensor([0, 1, 2, 3]), "noun": LABELS}
    mix = MixClips(0.8, 0, {"verb": 4, "noun": 3})
    _, targets = mix(_constant_clips(), labels, np.random.default_rng(0))
    _, noun = MixClips(0.8, 0, 3)(_constant_clips(), LABELS, np.random.default_rng(0))
    assert targets["verb"].shape == (4, 4)
    assert torch.equal(targets["noun"], noun)


def test_memory_format_and_single_clips_are_kept() -> None:
    clips = torch.rand(4, 3, 2, 8, 8).to(memory_format=torch.channels_last_3d)
    for mix in (MixClips(0.8, 0, 3), MixClips(0, 1.0, 3)):
        mixed, _ = mix(clips, LABELS, np.random.default_rng(3))
        assert mixed.is_contiguous(memory_format=torch.channels_last_3d)
        one, target = mix(clips[:1], LABELS[:1], np.random.default_rng(3))
        assert torch.equal(one, clips[:1])
        assert target.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MixClips(-1, 0, 3), "mixup_alpha is -1"),
        (lambda: MixClips(0, float("inf"), 3), "cutmix_alpha is inf"),
        (lambda: MixClips(0, 0, 3, 1.0), "label_smoothing is 1.0"),
        (lambda: _mix(torch.rand(4, 3, 8, 8), LABELS), r"expected \(B, C, T, H, W\)"),
        (lambda: _mix(_constant_clips(), LABELS[:3]), r"labels have shape \(3,\)"),
        (lambda: _mix(_constant_clips(), LABELS.float()), "dtype torch.float32"),
        (lambda: _mix(_constant_clips(), {"verb": LABELS}), "heads"),
    ],
)
def test_mistakes_are_named(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


def _mix(clips: Tensor, labels: object) -> None:
    MixClips(0.8, 0, 3)(clips, labels, np.random.default_rng(0))  # type: ignore[type-var]
