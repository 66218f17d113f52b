"""Which frames of a video make a clip: numbers only, no file is touched.

Every function takes ``total``, the number of frames of the video, and returns int64 frame numbers
in ascending order. A video shorter than the clip repeats frames, the last one at its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClipSampling", "dense_indices", "segment_indices", "view_indices"]


@dataclass(frozen=True)
class ClipSampling:
    """Which frames a dataset takes of a video.

    ``frames`` in a clip; ``stride`` from one to the next, or None to spread them over the whole
    video, one in each of as many equal segments. ``views`` is how many clips evaluation averages.
    """

    frames: int = 16
    stride: int | None = None
    views: int = 1

    def __post_init__(self) -> None:
        stride = 1 if self.stride is None else self.stride
        _check("ClipSampling", frames=self.frames, stride=stride, views=self.views)

    def draw(self, total: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """A clip of training, shape (frames,): drawn start, or a drawn frame of each segment."""
        if self.stride is None:
            return segment_indices(total, self.frames, generator=generator)
        return dense_indices(total, self.frames, self.stride, generator=generator)

    def all_views(self, total: int) -> NDArray[np.int64]:
        """The clips of evaluation, shape (views, frames), see `view_indices`."""
        return view_indices(total, self.frames, self.views, self.stride)


def segment_indices(
    total: int, frames: int, *, position: float = 0.5, generator: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """One frame of each of ``frames`` equal segments of the video, shape (frames,).

    ``position`` in [0, 1) is where in its segment a frame is taken, the centre by default. With a
    ``generator`` it is drawn for every segment by itself, which is how clips are drawn in training
    (temporal segment networks, arXiv 1608.00859, section 3.1).
    """
    _check("segment_indices", total=total, frames=frames)
    if not 0 <= position < 1:
        raise ValueError(f"segment_indices: position is {position}, expected 0 <= position < 1")
    offsets = np.full(frames, position) if generator is None else generator.random(frames)
    picked = np.floor((np.arange(frames) + offsets) * (total / frames))
    return np.minimum(picked.astype(np.int64), total - 1)


def dense_indices(
    total: int,
    frames: int,
    stride: int,
    *,
    start: int | None = None,
    generator: np.random.Generator | None = None,
) -> NDArray[np.int64]:
    """``frames`` frames, ``stride`` apart, shape (frames,).

    They begin at ``start``, else at a place drawn from ``generator``, else so that the clip stands
    in the middle of the video.
    """
    _check("dense_indices", total=total, frames=frames, stride=stride)
    room = max(0, total - _span(frames, stride))
    if start is None:
        start = room // 2 if generator is None else int(generator.integers(0, room + 1))
    elif start < 0:
        raise ValueError(f"dense_indices: start is {start}, expected 0 or more")
    return np.minimum(start + stride * np.arange(frames, dtype=np.int64), total - 1)


def view_indices(
    total: int, frames: int, views: int, stride: int | None = None
) -> NDArray[np.int64]:
    """``views`` clips of one video, for averaging their predictions, shape (views, frames).

    With a ``stride`` the clips are dense and begin evenly spaced, the first at frame 0, the last
    where it just fits. Without, each clip covers the whole video by segments and the clips take
    different frames of a segment. No two clips are equal where the video is long enough: ``views``
    starting places that fit, or ``views`` frames in every segment.
    """
    _check("view_indices", total=total, frames=frames, views=views)
    if stride is None:
        clips = [
            segment_indices(total, frames, position=(view + 0.5) / views) for view in range(views)
        ]
    elif views == 1:
        clips = [dense_indices(total, frames, stride)]
    else:
        _check("view_indices", stride=stride)
        room = max(0, total - _span(frames, stride))
        clips = [
            dense_indices(total, frames, stride, start=room * view // (views - 1))
            for view in range(views)
        ]
    return np.stack(clips)


def _span(frames: int, stride: int) -> int:
    """Frames from a dense clip's first to its last, both counted."""
    return (frames - 1) * stride + 1


def _check(function: str, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{function}: {name} is {value}, expected 1 or more")
