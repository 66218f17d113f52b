"""Clips made on the spot whose label is in the order of their frames, and nowhere else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evit_models.video.seeds import sample_generator
from evit_models.video.transform import IMAGENET_MEAN, IMAGENET_STD
from evit_models.video.writer import write_video

from .base import ClipDataset, Sample
from .motion_scenes import PICTURES, Renderer

__all__ = ["KINDS", "MotionClips"]

#: The kinds of motion, and their classes: each names the step from one phase shown to the next.
#: That of "fast" depends on the number of frames, see `_fast_step`.
KINDS: dict[str, dict[str, int | None]] = {
    "horizontal": {"left": -1, "right": 1},
    "vertical": {"up": -1, "down": 1},
    "speed": {"slow": 1, "fast": None},
    "depth": {"approach": 1, "recede": -1},
    "order": {"open": 1, "close": -1},
}
_PICTURES = dict(zip(KINDS, PICTURES, strict=True))

_SPLITS = ("train", "validation", "test")
_TEXTURES = 16  # streams of random numbers: scenes take those of _SPLITS, textures those from here


class MotionClips(ClipDataset):
    """Something moves before a wall, and the class is the order in which its frames are shown.

    A clip shows one of ``kinds``: a curtain that slides left or right ("horizontal"), a blind that
    slides up or down ("vertical"), a wheel that turns slow or fast ("speed"), a tunnel whose rings
    approach or recede ("depth"), a door that opens or closes ("order"). By default all ten classes.

    A scene is rendered to ``frames`` frames, one of each phase of the movement, before any label is
    known. The label only orders them: forwards, backwards, or in steps of more than one phase for
    "fast". So both classes of a kind show the same frames, and no function of the unordered frames
    can tell them apart, not even on clips that it was trained on. Since movements begin anywhere on
    their cycle, neither can a function of the t-th frame alone. What a frame does show is the kind:
    `chance`.

    Of C classes, samples k * C to (k + 1) * C - 1 are one of each, of one scene for every kind.

    ``split`` ("train", "validation", "test") have scenes and textures of their own. With
    ``training`` (default: for the split "train") samples are (3, T, H, W) and every epoch draws new
    scenes; else they are one view, (1, 3, T, H, W), the same in every epoch. ``clips`` is the
    number of samples, best a multiple of the number of classes. A 64 x 64 clip of 8 frames takes
    about a millisecond.

    Raises: ValueError for unknown splits or kinds, for sizes below 16 and fewer than 5 frames, and
    for "speed" in 6 frames, where fast cannot be told from slow backwards.
    """

    def __init__(
        self,
        split: str = "train",
        clips: int = 1000,
        frames: int = 8,
        size: int = 64,
        seed: int = 0,
        kinds: Sequence[str] = tuple(KINDS),
        *,
        training: bool | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"MotionClips: split is {split!r}, expected one of {_SPLITS}")
        super().__init__(training=split == "train" if training is None else training, seed=seed)
        self._check(clips, frames, size, kinds)
        classes = {name: KINDS[kind][name] for kind in kinds for name in KINDS[kind]}
        self.num_classes: int = len(classes)
        self.class_names: list[str] = list(classes)
        self.labels: list[int] = [index % len(classes) for index in range(clips)]
        #: The best accuracy that unordered frames allow: one class of every kind, 1/2.
        self.chance: float = len(kinds) / len(classes)
        self._shows = [
            (position, _order(step, frames))
            for position, kind in enumerate(kinds)
            for step in KINDS[kind].values()
        ]
        self._stream = _SPLITS.index(split)
        textures = sample_generator(seed, 0, 0, _TEXTURES + self._stream)
        self._renderers = [Renderer(_PICTURES[kind], frames, size, textures) for kind in kinds]
        self._scale = (1 / (255 * np.asarray(std, dtype=np.float64))).astype(np.float32)
        self._shift = (-np.asarray(mean) / np.asarray(std)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        frames = self.frames(index)
        # Channels first while the pixels are still bytes: a quarter of the memory to turn over.
        pixels = np.ascontiguousarray(frames.transpose(3, 0, 1, 2)).astype(np.float32)
        pixels *= self._scale[:, None, None, None]
        pixels += self._shift[:, None, None, None]
        video = torch.from_numpy(pixels)
        return Sample(
            video=video if self.training else video[None],
            label=self.labels[index],
            index=index,
            valid=True,
            source=f"motion {index}",
            error="",
        )

    def frames(self, index: int) -> NDArray[np.uint8]:
        """The frames of one sample as they would be filmed, uint8 (T, H, W, 3)."""
        self._check_index(index)
        epoch = self.epoch if self.training else 0
        position, order = self._shows[self.labels[index]]
        scene = index // self.num_classes * len(self._renderers) + position
        generator = sample_generator(self.seed, epoch, scene, self._stream)
        return self._renderers[position].scene(generator)[order]

    def write(
        self, folder: str | PathLike[str], *, fps: float = 8, options: dict[str, str] | None = None
    ) -> Path:
        """Write every clip as an mp4, a list of them (`VideoList`) and the names of the classes.

        Files in ``folder``: ``00000.mp4`` and so on, ``list.txt`` (``path label`` lines),
        ``classes.txt`` (a name a line) and ``classes.json`` (a list). ``options`` go to the
        encoder.

        Returns: the path of the list.
        Raises: OSError where the folder cannot be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for index, label in enumerate(self.labels):
            name = f"{index:05d}.mp4"
            write_video(folder / name, self.frames(index), fps, options=options or {"crf": "16"})
            lines.append(f"{name} {label}\n")
        names = self.class_names
        (folder / "classes.txt").write_text("".join(f"{n}\n" for n in names), encoding="utf-8")
        (folder / "classes.json").write_text(json.dumps(names), encoding="utf-8")
        listing = folder / "list.txt"
        listing.write_text("".join(lines), encoding="utf-8")
        return listing

    @staticmethod
    def _check(clips: int, frames: int, size: int, kinds: Sequence[str]) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds or isinstance(kinds, str):
            raise ValueError(f"MotionClips: kinds is {kinds!r}, expected some of {tuple(KINDS)}")
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"MotionClips: kinds is {kinds!r}, with one of them twice")
        for name, value, least in (("clips", clips, 1), ("frames", frames, 5), ("size", size, 16)):
            if value < least:
                raise ValueError(f"MotionClips: {name} is {value}, expected {least} or more")
        if "speed" in kinds and _fast_step(frames) is None:
            raise ValueError("MotionClips: frames is 6, expected 5, 7 or more for the kind 'speed'")


def _fast_step(frames: int) -> int | None:
    """Phases per frame of the fast wheel, about 3; None where there is no such step.

    It shares no factor with ``frames``, so that every phase is shown once, and is below half of
    them, beyond which a wheel seems to turn the other way.
    """
    steps = [s for s in range(2, (frames + 1) // 2) if math.gcd(s, frames) == 1]
    return min(steps, key=lambda step: (abs(step - 3), step), default=None)


def _order(step: int | None, frames: int) -> NDArray[np.int64]:
    """Phases in the order shown: they grow by ``step`` a frame, modulo their number."""
    if step is None:
        step = _fast_step(frames)
    assert step is not None, "checked in the constructor"
    start = 0 if step > 0 else frames - 1
    return (start + step * np.arange(frames)) % frames
