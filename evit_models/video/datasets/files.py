"""Clips of real files: reading them, and what happens where one cannot be read."""

from __future__ import annotations

import logging
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evit_models.video.augment import TrainTransform
from evit_models.video.errors import CorruptVideo, VideoError, VideoNotFound, VideoWarning
from evit_models.video.reader import VideoReader
from evit_models.video.sampling import ClipSampling
from evit_models.video.transform import ClipTransform

from .base import ClipDataset, Sample, TooManyBadVideos

__all__ = ["Footage", "Segment", "VideoFiles", "VideoOptions", "open_footage"]

_log = logging.getLogger("evit_models.video.datasets")

# Streams of random numbers (seeds.sample_generator): the sample itself, its replacements.
_CLIP, _REPLACEMENT = 0, 1
_MOST_REPLACEMENTS = 20


@dataclass(frozen=True)
class Segment:
    """A part of a video, in seconds from its first frame; all of it without ``start``, ``stop``.

    ``chunk_seconds``: the path is a folder of files of that length, named by the second at which
    each begins.
    """

    path: str
    start: float | None = None
    stop: float | None = None
    chunk_seconds: int | None = None


class Footage(Protocol):
    """Something that shows frames by their number, of which it has so many a second."""

    total: int
    fps: float

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Frames of ascending numbers below ``total``, uint8 (H, W, 3), one at a time."""
        ...


class VideoOptions(TypedDict, total=False):
    """What every dataset of video files takes by name; see `VideoFiles`."""

    sampling: ClipSampling | None
    transform: TrainTransform | ClipTransform | None
    training: bool
    seed: int
    bad_limit: float
    threads: int


class VideoFiles(ClipDataset):
    """A dataset of segments of video files, of which a subclass names the segments and labels.

    A video that cannot be read is, in training, logged and replaced by another, drawn from
    (seed, epoch, index) alone; once more than ``bad_limit`` of all videos (but at least one) were
    bad, `TooManyBadVideos` is raised. In evaluation it is a sample of zeros with ``valid`` False.
    `bad_videos` knows them, whichever worker met them.

    Every dataset of video files takes these by name: ``sampling``, one clip over the whole segment
    by default. ``transform``: in training called with frames and a generator, see `TrainTransform`;
    in evaluation with frames, see `ClipTransform`, which may give several crops. The views of a
    sample are its clips, times those crops. Training with a `ClipTransform` of one crop draws
    nothing: its clips are those of evaluation with one view. ``threads``: decoder threads of each
    worker.
    """

    def __init__(
        self,
        *,
        sampling: ClipSampling | None = None,
        transform: TrainTransform | ClipTransform | None = None,
        training: bool = True,
        seed: int = 0,
        bad_limit: float = 0.01,
        threads: int = 1,
    ) -> None:
        super().__init__(training=training, seed=seed)
        name = type(self).__name__
        sampling = sampling or ClipSampling()
        if not 0 <= bad_limit <= 1:
            raise ValueError(f"{name}: bad_limit is {bad_limit}, expected 0 to 1")
        if transform is None:
            transform = TrainTransform() if training else ClipTransform()
        if training and isinstance(transform, ClipTransform):
            views = sampling.views * transform.crops
            if views != 1:
                raise ValueError(
                    f"{name}: transform and sampling give {views} views, training takes 1"
                )
        if not training and isinstance(transform, TrainTransform):
            raise ValueError(f"{name}: transform is that of training, expected a ClipTransform")
        self.sampling = sampling
        self.transform = transform
        self.bad_limit = bad_limit
        self.threads = threads

    def _set_length(self, count: int) -> None:
        # Shared by all workers: whoever meets a bad video marks it.
        self._bad = torch.zeros(count, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._bad)

    @abstractmethod
    def segment(self, index: int) -> Segment:
        """Where the clip of a sample is."""

    @property
    def bad_videos(self) -> list[int]:
        """Numbers of the samples whose videos could not be read, since the dataset was made."""
        return [int(index) for index in self._bad.nonzero().flatten()]

    def views(self, index: int) -> Tensor:
        """The clips of a sample, (views, 3, T, H, W), where nothing is drawn.

        Raises: VideoError where the video cannot be read; nothing stands for it.
        """
        self._check_index(index)
        segment = self.segment(index)
        try:
            with open_footage(segment, threads=self.threads) as footage:
                return self._views(footage)
        except (OSError, av.error.FFmpegError) as error:
            raise CorruptVideo(segment.path, _reason(error)) from error

    def mark_bad(self, indices: Sequence[int]) -> None:
        """Counts videos that somebody else could not read; raises TooManyBadVideos in training."""
        self._bad[list(indices)] = True
        if self.training:
            self._check_cap()

    def __getitem__(self, index: int) -> Sample:
        self._check_index(index)
        segment = self.segment(index)
        try:
            return self._sample(index, segment, self._read(segment, index, _CLIP), index)
        except (VideoError, OSError, av.error.FFmpegError) as error:
            self._bad[index] = True
            reason = _reason(error)
        if self.training:
            return self._replace(index, segment, reason)
        _log.warning("%s: %s; counted, not replaced", segment.path, reason)
        return Sample(
            video=torch.zeros(self._view_shape()),
            label=self.label_of(index),
            index=index,
            valid=False,
            source=segment.path,
            error=reason,
        )

    def _read(self, segment: Segment, index: int, stream: int) -> Tensor:
        with open_footage(segment, threads=self.threads) as footage:
            if isinstance(self.transform, TrainTransform):
                generator = self._generator(index, stream)
                numbers = self.sampling.draw(footage.total, generator)
                return self.transform(footage.frames(numbers), generator)
            clips = self._views(footage)
            return clips[0] if self.training else clips

    def _views(self, footage: Footage) -> Tensor:
        assert isinstance(self.transform, ClipTransform)
        views = self.sampling.all_views(footage.total)
        return torch.cat([self.transform(footage.frames(numbers)) for numbers in views])

    def _replace(self, index: int, segment: Segment, reason: str) -> Sample:
        """The first readable one of other samples, in an order of this sample's own."""
        _log.warning("%s: %s; another video stands for it", segment.path, reason)
        self._check_cap()
        others = self._generator(index, _REPLACEMENT)
        for _ in range(_MOST_REPLACEMENTS):
            other = int(others.integers(len(self)))
            if other == index:
                continue
            replacement = self.segment(other)
            try:
                video = self._read(replacement, index, _REPLACEMENT + 1)
            except (VideoError, OSError, av.error.FFmpegError) as error:
                self._bad[other] = True
                _log.warning("%s: %s", replacement.path, _reason(error))
                self._check_cap()
                continue
            sample = self._sample(index, replacement, video, other)
            sample["error"] = f"{segment.path}: {reason}"
            return sample
        raise TooManyBadVideos(f"{segment.path}: {reason}; nor could {_MOST_REPLACEMENTS} others")

    def _sample(self, index: int, segment: Segment, video: Tensor, shown: int) -> Sample:
        return Sample(
            video=video,
            label=self.label_of(shown),
            index=index,
            valid=True,
            source=segment.path,
            error="",
        )

    def _check_cap(self) -> None:
        bad = int(self._bad.sum())
        most = math.ceil(self.bad_limit * len(self))
        if bad > most:
            names = ", ".join(self.segment(number).path for number in self.bad_videos[:3])
            raise TooManyBadVideos(
                f"{bad} of {len(self)} videos cannot be read, more than the {most} that may be "
                f"replaced (bad_limit is {self.bad_limit:g}); the first are {names}"
            )

    def _view_shape(self) -> torch.Size:
        assert isinstance(self.transform, ClipTransform)
        side = np.zeros((self.sampling.frames, 16, 16, 3), dtype=np.uint8)
        crops, *rest = self.transform(side).shape
        return torch.Size((crops * self.sampling.views, *rest))


@contextmanager
def open_footage(segment: Segment, *, threads: int = 1) -> Iterator[Footage]:
    """Open a segment for reading.

    Stored clips (``.npy``, uint8 (T, H, W, 3), as `evit prepare` writes them) count as videos.

    Raises: VideoError where it cannot be read, or begins after its video has ended.
    """
    if segment.chunk_seconds is not None:
        yield _Chunks(segment, threads)
    elif segment.path.endswith(".npy"):
        yield _Stored(segment.path)
    else:
        with VideoReader(segment.path, threads=threads) as reader:
            yield _Part(reader, segment)


class _Part:
    """A video file from ``start`` to ``stop``."""

    def __init__(self, reader: VideoReader, segment: Segment) -> None:
        info = reader.info
        self._start = segment.start or 0.0
        if self._start >= info.duration:
            raise CorruptVideo(
                segment.path,
                f"ends after {info.duration:.2f} s, before the segment at {self._start:.2f} s",
            )
        whole = segment.start is None and segment.stop is None
        stop = info.duration if segment.stop is None else min(segment.stop, info.duration)
        self.total = info.num_frames if whole else max(1, round((stop - self._start) * info.fps))
        self.fps = info.fps
        self._reader = reader

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        return self._reader.frames_at(self._start + self._reader.info.times(indices))


class _Stored:
    """A clip that was stored as an array; only what is asked for is read from the disk."""

    fps = 25.0  # it does not say

    def __init__(self, path: str) -> None:
        try:
            self._frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise VideoNotFound(path, "no such file") from error
        except (ValueError, EOFError) as error:
            raise CorruptVideo(path, f"is no stored clip: {error}") from error
        if self._frames.dtype != np.uint8 or self._frames.ndim != 4 or not self._frames.size:
            raise CorruptVideo(
                path,
                f"is no stored clip: has shape {self._frames.shape} and dtype "
                f"{self._frames.dtype}, expected (T, H, W, 3) and uint8",
            )
        self.total = len(self._frames)

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for index in indices:
            yield np.array(self._frames[index])


class _Chunks:
    """A segment of a video that is kept in files of equal length, one after the other."""

    def __init__(self, segment: Segment, threads: int) -> None:
        assert segment.chunk_seconds is not None
        assert segment.start is not None
        assert segment.stop is not None
        self._seconds = segment.chunk_seconds
        self._folder = Path(segment.path)
        self._start = segment.start
        self._threads = threads
        self._suffix = next((p.suffix for p in self._folder.glob("0.*")), ".MP4")
        with VideoReader(self._path(self._chunk(segment.start)), threads=threads) as reader:
            self.fps = reader.info.fps
        self.total = max(1, round((segment.stop - segment.start) * self.fps))

    def frames(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        times = self._start + (indices + 0.5) / self.fps
        chunks = np.floor(times / self._seconds).astype(np.int64)
        for chunk in np.unique(chunks):
            inside = times[chunks == chunk] - chunk * self._seconds
            with (
                VideoReader(self._path(int(chunk)), threads=self._threads) as reader,
                warnings.catch_warnings(),
            ):
                # The last frame of a chunk may stand for the few that its length was rounded by.
                warnings.simplefilter("ignore", VideoWarning)
                yield from reader.frames_at(inside)

    def _chunk(self, seconds: float) -> int:
        return int(seconds // self._seconds)

    def _path(self, chunk: int) -> Path:
        return self._folder / f"{chunk * self._seconds}{self._suffix}"


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, VideoError) else f"{type(error).__name__}: {error}"
