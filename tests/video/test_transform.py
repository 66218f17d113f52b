"""The transform against the same steps written out in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from evit_models.video import (
    ClipTransform,
    center_crop,
    normalize,
    resize_short_side,
    three_crops,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(48, 80), (80, 48), (37, 61), (64, 64), (20, 31)]


def _frames(height: int, width: int, count: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_whole_transform_is_four_lines_of_pytorch(
    height: int, width: int, interpolation: str
) -> None:
    frames = _frames(height, width)
    clip = ClipTransform(size=32, crop_ratio=0.8, interpolation=interpolation)(frames)

    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).double()
    scale = 40 / min(height, width)
    size = (round(height * scale), round(width * scale))
    pixels = F.interpolate(pixels, size=size, mode=interpolation, antialias=True).clamp(0, 255)
    top, left = (size[0] - 32) // 2, (size[1] - 32) // 2
    pixels = pixels[:, :, top : top + 32, left : left + 32] / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    expected = ((pixels - mean) / std).transpose(0, 1)

    assert clip.shape == (1, 3, 3, 32, 32)
    assert clip.dtype == torch.float32
    torch.testing.assert_close(clip[0].double(), expected, rtol=0, atol=2e-5)


def test_frames_one_by_one_are_the_same_as_all_at_once() -> None:
    frames = _frames(48, 80, 5)
    transform = ClipTransform(size=32, crops=3)
    one_by_one = transform(iter(frames))
    assert torch.equal(one_by_one, transform(frames))
    assert torch.equal(one_by_one, transform(torch.from_numpy(frames)))


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40)])
def test_three_crops_are_both_ends_and_the_middle(height: int, width: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    along = columns if width > height else rows
    starts = [int(crop.min()) for crop in three_crops(along, 40)]
    assert starts == [0, 30, 60]
    assert all(crop.shape == (40, 40) for crop in three_crops(along, 40))
    assert torch.equal(three_crops(along, 40)[1], center_crop(along, 40))


def test_three_crops_of_the_transform_cover_the_short_side() -> None:
    clip = ClipTransform(size=48, crops=3, crop_ratio=0.5)(_frames(48, 96))
    assert clip.shape == (3, 3, 3, 48, 48)
    expected = normalize(resize_short_side(_frames(48, 96), 48)[..., :48], MEAN, STD)
    assert torch.equal(clip[0], expected.transpose(0, 1))


def test_no_resize_keeps_pixels() -> None:
    frames = _frames(32, 40)
    assert torch.equal(
        resize_short_side(frames, 32), torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    )


def test_bicubic_stays_in_range() -> None:
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    frames[:, :, 16:] = 255
    pixels = resize_short_side(frames, 47, interpolation="bicubic")
    assert pixels.min() >= 0
    assert pixels.max() <= 255


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: resize_short_side(torch.zeros(3, 8, 8), 4), r"expected \(T, H, W, C\)"),
        (lambda: resize_short_side(torch.zeros(1, 8, 8, 3), 4), "torch.uint8"),
        (lambda: resize_short_side(_frames(8, 8), 0), "size is 0"),
        (lambda: resize_short_side(_frames(8, 8), 4, interpolation="x"), "interpolation is 'x'"),
        (lambda: center_crop(torch.zeros(3, 8, 8), 9), "center_crop: size is 9"),
        (lambda: three_crops(torch.zeros(3, 8, 8), 9), "three_crops: size is 9"),
        (lambda: normalize(torch.zeros(1, 3, 8, 8), (0.5,), (0.5,)), "mean has 1"),
        (lambda: ClipTransform(crops=2), "crops is 2, expected 1 or 3"),
        (lambda: ClipTransform(crop_ratio=0), "crop_ratio is 0"),
        (lambda: ClipTransform()(iter([])), "at least one frame"),
    ],
)
def test_bad_arguments_are_named(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
