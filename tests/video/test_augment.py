"""Augmentation: every frame of a clip alike, each operation against what it claims to do."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evit_models.video import normalize
from evit_models.video.augment import ColorJitter, RandomErasing, TrainTransform, random_box
from evit_models.video.rand_augment import OPERATIONS, RandAugment

seeds = st.integers(0, 2**32 - 1)
EVERYTHING = TrainTransform(
    size=24,
    flip=0.5,
    rand_augment=RandAugment(3, 8.0),
    color_jitter=ColorJitter(0.4, 0.4, 0.4, 0.1),
    erasing=RandomErasing(0.5),
)


def _still(count: int = 4, height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """The same smooth coloured picture in every frame."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows * 5, columns * 4, (rows + columns) * 2], axis=-1) % 256
    return np.tile(picture.astype(np.uint8), (count, 1, 1, 1))


@given(seeds)
def test_a_still_clip_stays_still(seed: int) -> None:
    video = EVERYTHING(_still(), np.random.default_rng(seed))
    assert video.shape == (3, 4, 24, 24)
    assert video.dtype == torch.float32
    assert video.is_contiguous()
    assert (video == video[:, :1]).all()


@pytest.mark.parametrize("name", OPERATIONS)
@given(seed=seeds, level=st.floats(0, 1))
def test_every_operation_treats_frames_alike_and_keeps_its_input(
    name: str, seed: int, level: float
) -> None:
    clip = np.random.default_rng(seed).integers(0, 256, (2, 9, 13, 3), dtype=np.uint8)
    clip[1] = clip[0]
    before = clip.copy()
    for sign in (-1.0, 1.0):
        out = OPERATIONS[name](clip, level, sign)
        assert out.shape == clip.shape
        assert out.dtype == np.uint8
        assert np.array_equal(out[0], out[1])
    assert np.array_equal(clip, before)


def test_one_generator_gives_one_clip() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), dtype=np.uint8)
    one, two = (EVERYTHING(frames, np.random.default_rng(9)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(one, EVERYTHING(iter(frames), np.random.default_rng(9)))
    assert not torch.equal(one, EVERYTHING(frames, np.random.default_rng(10)))


def test_a_plain_crop_is_crop_resize_and_the_given_statistics() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    transform = TrainTransform(size=16, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    video = transform(frames, np.random.default_rng(4))
    top, left, height, width = random_box(
        40, 56, transform.scale, transform.ratio, np.random.default_rng(4)
    )
    part = torch.from_numpy(frames[:, top : top + height, left : left + width])
    pixels = F.interpolate(
        part.permute(0, 3, 1, 2).float(), size=(16, 16), mode="bilinear", antialias=True
    )
    expected = normalize(pixels, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)).transpose(0, 1)
    # Resizing bytes rounds to whole values: at most one of 255, in units of the smallest std.
    assert (video - expected).abs().max() <= 1 / 255 / 0.1


def test_flip_is_off_unless_asked_for_and_mirrors_the_width() -> None:
    frames = _still(2, 24, 24)
    whole = TrainTransform(size=24, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    straight = whole(frames, np.random.default_rng(0))
    assert all(
        torch.equal(straight, whole(frames, np.random.default_rng(seed))) for seed in range(20)
    )
    mirrored = replace(whole, flip=1.0)(frames, np.random.default_rng(0))
    assert torch.equal(mirrored, straight.flip(-1))


@given(st.integers(1, 90), st.integers(1, 90), seeds)
def test_boxes_lie_inside(height: int, width: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    top, left, tall, wide = random_box(height, width, (0.08, 1.0), (0.75, 4 / 3), generator)
    assert 0 <= top <= top + tall <= height
    assert 0 <= left <= left + wide <= width
    assert tall > 0
    assert wide > 0


def test_boxes_have_the_area_and_ratio_asked_for() -> None:
    generator = np.random.default_rng(0)
    boxes = [random_box(200, 300, (0.2, 0.5), (0.5, 2.0), generator)[2:] for _ in range(500)]
    areas = np.array([tall * wide / 60000 for tall, wide in boxes])
    ratios = np.array([wide / tall for tall, wide in boxes])
    assert areas.min() > 0.195
    assert areas.max() < 0.505
    assert areas.mean() == pytest.approx(0.35, abs=0.02)
    assert ratios.min() > 0.48
    assert ratios.max() < 2.05
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.06)


def test_a_frame_that_no_draw_fits_gives_its_middle() -> None:
    assert random_box(10, 100, (1.0, 1.0), (1.0, 1.0), np.random.default_rng(0)) == (0, 45, 10, 10)


def test_hue_of_half_a_turn_is_the_opposite_colour() -> None:
    clip = np.array([[[[200, 60, 60]]]], dtype=np.uint8)
    hues = []
    for seed in range(40):
        red, green, blue = ColorJitter(hue=0.5)(clip, np.random.default_rng(seed))[0, 0, 0] / 255
        hues.append(colorsys.rgb_to_hsv(red, green, blue)[0])
        assert red * 0.299 + green * 0.587 + blue * 0.114 == pytest.approx(0.4, abs=0.06)
    assert max(hues) - min(hues) > 0.8  # all around the circle


def test_jitter_with_nothing_to_do_changes_nothing() -> None:
    clip = _still()
    assert np.array_equal(ColorJitter()(clip, np.random.default_rng(0)), clip)


def test_jitter_factors() -> None:
    clip = np.random.default_rng(0).integers(100, 140, (2, 8, 8, 3), dtype=np.uint8)
    grey = (clip @ np.array([0.299, 0.587, 0.114]))[..., None]

    class Highest(np.random.Generator):
        def uniform(self, *_: object) -> float:  # type: ignore[override]
            return 1.0

    highest = Highest(np.random.PCG64(0))
    for jitter, expected in (
        (ColorJitter(brightness=0.4), clip * 1.4),
        (ColorJitter(contrast=0.4), grey.mean() + (clip - grey.mean()) * 1.4),
        (ColorJitter(saturation=0.4), grey + (clip - grey) * 1.4),
        (ColorJitter(brightness=0.2, contrast=0.4), (grey.mean() * -0.4 + clip * 1.4) * 1.2),
    ):
        assert np.abs(jitter(clip, highest) - expected).max() <= 1, jitter


def test_operations_do_what_their_names_say() -> None:
    clip = _still()
    assert np.array_equal(OPERATIONS["invert"](clip, 1, 1), 255 - clip)
    assert set(np.unique(OPERATIONS["posterize"](clip, 1, 1))) <= set(range(0, 256, 16))
    assert OPERATIONS["solarize"](clip, 0.5, 1).max() <= 127
    assert np.array_equal(OPERATIONS["brightness"](clip, 0, 1), clip)
    dark = np.random.default_rng(0).integers(50, 100, (2, 8, 8, 3), dtype=np.uint8)
    stretched = OPERATIONS["auto_contrast"](dark, 1, 1)
    assert stretched.min() == 0
    assert stretched.max() == 255
    flat = OPERATIONS["equalize"](
        np.repeat(np.arange(64, dtype=np.uint8), 12).reshape(1, 16, 16, 3), 1, 1
    )
    assert flat.max() == 255
    assert flat.min() == 0
    grey = OPERATIONS["color"](clip, 1, -1).astype(int)
    assert np.ptp(grey, axis=-1).max() <= np.ptp(clip.astype(int), axis=-1).max() * 0.1 + 1
    uniform = np.full((2, 8, 8, 3), 77, np.uint8)
    for name in ("auto_contrast", "equalize", "contrast", "sharpness", "color"):
        assert np.array_equal(OPERATIONS[name](uniform, 1, 1), uniform), name


@pytest.mark.parametrize(("height", "width"), [(41, 41), (21, 61)])
def test_geometry_is_in_pixels(height: int, width: int) -> None:
    clip = np.full((2, height, width, 3), 128, np.uint8)
    clip[:, height // 2, width // 2] = 255

    def peak(name: str, level: float, sign: float = 1.0) -> tuple[int, int]:
        moved = OPERATIONS[name](clip, level, sign)[0, ..., 0]
        row, column = np.unravel_index(moved.argmax(), moved.shape)
        return int(row) - height // 2, int(column) - width // 2

    assert peak("rotate", 1) == (0, 0)
    assert peak("translate_x", 4 / (0.45 * width)) == (0, -4)
    assert peak("translate_y", 4 / (0.45 * height), -1.0) == (4, 0)
    # A column through the middle, turned by 30 degrees, leans by half of its length.
    line = np.full((1, height, width, 3), 128, np.uint8)
    line[:, :, width // 2 - 1 : width // 2 + 2] = 255
    turned = OPERATIONS["rotate"](line, 1, 1)[0, ..., 0].astype(int)
    above = turned[height // 2 - 8].argmax() - width // 2
    below = turned[height // 2 + 8].argmax() - width // 2
    assert abs(above - below) == pytest.approx(16 * np.tan(np.radians(30)), abs=2)
    assert abs(above + below) <= 2


def test_erasing_is_one_box_of_noise_in_all_frames() -> None:
    erased = 0
    for seed in range(60):
        clip = torch.full((3, 4, 40, 60), 9.0)
        RandomErasing(0.5, area=(0.1, 0.2))(clip, np.random.default_rng(seed))
        hit = (clip != 9).all(0)
        assert (hit == hit[:1]).all()
        share = hit[0].float().mean().item()
        assert share == 0 or 0.09 < share < 0.22
        if share:
            rows, columns = hit[0].any(1).sum().item(), hit[0].any(0).sum().item()
            assert rows * columns == hit[0].sum().item()
            assert (clip == clip[:, :1]).all()
        erased += share > 0
    assert 15 < erased < 45


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: TrainTransform(size=0), "size is 0"),
        (lambda: TrainTransform(scale=(0.5, 0.2)), "scale is"),
        (lambda: TrainTransform(ratio=(0, 1)), "ratio is"),
        (lambda: TrainTransform(flip=2), "flip is 2"),
        (lambda: TrainTransform(interpolation="nearest"), "interpolation is 'nearest'"),
        (lambda: TrainTransform()([], np.random.default_rng(0)), "at least one frame"),
        (lambda: ColorJitter(brightness=-1), "brightness is -1"),
        (lambda: ColorJitter(hue=0.6), "hue is 0.6"),
        (lambda: RandomErasing(2), "probability is 2"),
        (lambda: RandomErasing(area=(0, 1)), "area is"),
        (lambda: RandAugment(-1), "operations is -1"),
        (lambda: RandAugment(2, 11), "magnitude is 11"),
        (lambda: RandAugment(2, 5, -1), "spread is -1"),
    ],
)
def test_mistakes_are_named(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
