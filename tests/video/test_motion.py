"""Motion clips: time decides the label, single frames say nothing of it, files keep it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evit_models.video import VideoReader
from evit_models.video.datasets import MotionClips
from evit_models.video.datasets.motion import KINDS

NAMES = ["left", "right", "up", "down", "slow", "fast", "approach", "recede", "open", "close"]


def _bag(frames: NDArray[np.uint8]) -> list[bytes]:
    return sorted(frame.tobytes() for frame in frames)


@pytest.mark.parametrize("frames", [5, 8, 9, 16])
def test_all_classes_of_a_kind_show_exactly_the_same_frames(frames: int) -> None:
    data = MotionClips("train", 30, frames, 32)
    assert data.class_names == NAMES
    for scene in range(3):
        clips = [data.frames(10 * scene + label) for label in range(10)]
        assert len({clip.tobytes() for clip in clips}) == 10
        for one, other in zip(clips[::2], clips[1::2], strict=True):
            assert _bag(one) == _bag(other)
            assert len(set(_bag(one))) == frames
    assert _bag(data.frames(0)) != _bag(data.frames(10))


@pytest.mark.parametrize("kinds", [tuple(KINDS), ("speed",), ("order", "depth")])
def test_the_best_guess_from_unordered_frames_is_chance(kinds: tuple[str, ...]) -> None:
    """The best that any function of the bag can do, with all labels known, is one label a bag."""
    data = MotionClips("train", 4 * 30, 8, 16, kinds=kinds)
    count = len(data) // data.num_classes * data.num_classes
    labels: dict[bytes, list[int]] = {}
    for index in range(count):
        labels.setdefault(b"".join(_bag(data.frames(index))), []).append(data.labels[index])
    hits = sum(max(map(of_a_bag.count, of_a_bag)) for of_a_bag in labels.values())
    assert hits / count == data.chance
    assert data.chance == 1 / 2


@pytest.mark.parametrize(
    ("one", "other"), [("left", "right"), ("up", "down"), ("approach", "recede"), ("open", "close")]
)
def test_opposites_are_each_other_backwards(one: str, other: str) -> None:
    data = MotionClips("train", 20, 8, 32)
    for scene in (0, 10):
        forwards = data.frames(scene + NAMES.index(one))
        assert np.array_equal(forwards[::-1], data.frames(scene + NAMES.index(other)))


def test_fast_is_slow_in_steps_that_meet_every_frame() -> None:
    data = MotionClips("train", 10, 8, 32, kinds=("speed",))
    slow, fast = data.frames(0), data.frames(1)
    assert np.array_equal(fast, slow[3 * np.arange(8) % 8])


@pytest.mark.parametrize(("kind", "axis"), [("horizontal", 1), ("vertical", 2)])
def test_cloth_slides_as_its_class_says(kind: str, axis: int) -> None:
    """Its mean row or column is that of the frame before, two pixels on."""
    data = MotionClips("test", 200, 8, 48, kinds=(kind,), seed=3)
    hits = 0
    for index, label in enumerate(data.labels):
        clip = data.frames(index).astype(np.float32)[:, 6:-6, 6:-6]
        profile = clip.mean(axis=axis)
        back = np.abs(profile[1:, :-2] - profile[:-1, 2:]).mean()
        forth = np.abs(profile[1:, 2:] - profile[:-1, :-2]).mean()
        hits += label == int(forth < back)
    assert hits >= 0.98 * len(data)


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_by_itself_tells_the_class(kind: str) -> None:
    """The t-th frame has the same law in both classes: here the means of its pixels.

    Each class has scenes of its own here; of one scene, frames of both would be too much alike.
    """
    data = MotionClips("train", 3000, 8, 16, kinds=(kind,))
    pairs = np.arange(1500)
    both = [2 * pairs[label::2] + label for label in (0, 1)]
    clips = [np.stack([data.frames(index) for index in one]).astype(np.float64) for one in both]
    for t in (0, 3, 7):
        one, other = (frames[:, t].reshape(len(frames), -1) for frames in clips)
        apart = one.mean(axis=0) - other.mean(axis=0)
        # Of 768 pixels none should be past 5 standard errors of such a difference.
        error = (one.var(axis=0) / len(one) + other.var(axis=0) / len(other)) ** 0.5
        assert np.abs(apart / error).max() < 5


def test_samples_depend_on_seed_epoch_and_index_alone() -> None:
    one, two = (MotionClips("train", 20, 8, 32, seed=7) for _ in range(2))
    list(one)
    assert torch.equal(one[13]["video"], two[13]["video"])
    before = two[13]["video"]
    two.set_epoch(1)
    assert not torch.equal(before, two[13]["video"])
    two.set_epoch(0)
    assert torch.equal(before, two[13]["video"])
    assert not torch.equal(before, MotionClips("train", 20, 8, 32, seed=8)[13]["video"])


def test_held_out_clips_are_the_same_in_every_epoch_and_not_those_of_training() -> None:
    held_out = MotionClips("validation", 20, 8, 32)
    first = held_out[3]["video"]
    held_out.set_epoch(5)
    assert torch.equal(first, held_out[3]["video"])
    assert first.shape == (1, 3, 8, 32, 32)
    assert not torch.equal(first[0], MotionClips("train", 20, 8, 32)[3]["video"])
    assert not torch.equal(first, MotionClips("test", 20, 8, 32)[3]["video"])


def test_pixels_are_normalised_as_asked() -> None:
    data = MotionClips("train", 4, 8, 32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    plain = torch.from_numpy(data.frames(2)).permute(3, 0, 1, 2) / 255
    sample = data[2]
    torch.testing.assert_close(sample["video"], (plain - mean) / std)
    assert sample["label"] == 2
    assert sample["video"].is_contiguous()


def test_kinds_choose_classes_and_machines() -> None:
    data = MotionClips("train", 12, 8, 32, kinds=("order", "depth"))
    assert data.class_names == ["open", "close", "approach", "recede"]
    assert data.num_classes == 4
    assert data.labels == [0, 1, 2, 3] * 3
    assert _bag(data.frames(0)) == _bag(data.frames(1)) != _bag(data.frames(2))


def test_written_files_show_the_same_clips(tmp_path: Path) -> None:
    data = MotionClips("test", 12, 8, 64)
    listing = data.write(tmp_path / "motion")
    lines = listing.read_text().splitlines()
    assert lines[11] == "00011.mp4 1"
    assert (listing.parent / "classes.txt").read_text().split() == NAMES
    for index in (0, 11):
        with VideoReader(listing.parent / f"{index:05d}.mp4") as reader:
            frames = np.stack(list(reader)).astype(np.float64)
        apart = np.abs(frames - data.frames(index)).mean()
        assert frames.shape == (8, 64, 64, 3)
        # Halved colours cost most; a wrong order or clip would be some 30 apart.
        assert apart < 18


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "all"}, "split is 'all', expected one of"),
        ({"kinds": ("speed", "colour")}, "kinds is .*, expected some of"),
        ({"kinds": "speed"}, "kinds is 'speed', expected some of"),
        ({"kinds": ()}, "expected some of"),
        ({"kinds": ("order", "order")}, "twice"),
        ({"clips": 0}, "clips is 0, expected 1 or more"),
        ({"size": 8}, "size is 8, expected 16 or more"),
        ({"frames": 4}, "frames is 4, expected 5 or more"),
        ({"frames": 6}, "frames is 6, expected 5, 7 or more for the kind 'speed'"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MotionClips(**arguments)  # type: ignore[arg-type]


def test_six_frames_do_without_speed() -> None:
    kinds = ("horizontal", "depth", "order")
    assert MotionClips("train", 8, 6, 16, kinds=kinds)[7]["video"].shape[1] == 6
