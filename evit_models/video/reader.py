"""Reading frames of a video by time or by number, whatever the container says about itself."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from types import TracebackType

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from .decoding import Decoder, orders_only, scan_stamps
from .errors import VideoWarning
from .opening import MAX_PIXELS
from .orientation import apply_orientation, is_turned, orientation_of

__all__ = ["VideoInfo", "VideoReader", "probe", "read_frames"]


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video, or what was measured where it says nothing.

    ``width`` and ``height`` are those of a frame as shown, after the rotation that phones record.
    ``fps`` is the average, ``duration`` is in seconds from the first frame to the end of the last,
    ``num_frames`` is ``duration * fps``: exact for a constant frame rate.
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    turned: bool
    fps: float
    duration: float
    num_frames: int
    has_audio: bool

    def times(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """The middle of each frame's time on screen, in seconds, at the average rate."""
        return (np.asarray(indices, dtype=np.float64) + 0.5) / self.fps

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return asdict(self)


class VideoReader:
    """An open video; use with ``with``, since an unclosed file leaks its decoder.

    ``threads`` decoder threads (one per loader worker is right, 0 lets the decoder choose);
    ``max_pixels`` bounds width x height of a frame.

    Raises: VideoNotFound, NotAVideo, RefusedVideo, CorruptVideo, VideoTooLarge.
    """

    def __init__(
        self, path: str | PathLike[str], *, threads: int = 1, max_pixels: int = MAX_PIXELS
    ) -> None:
        if threads < 0:
            raise ValueError(f"VideoReader: threads is {threads}, expected 0 or more")
        self.path = fspath(path)
        self._max_pixels = max_pixels
        self._scan: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._decoder = Decoder(path, threads=threads, max_pixels=max_pixels)
        try:
            self._orientation = orientation_of(self._decoder.first_frame)
            self._size = (self._decoder.first_frame.width, self._decoder.first_frame.height)
            self._to_rgb = VideoReformatter()  # a frame's own would be set up anew for each
            self.info = self._inform()
        except BaseException:
            self._decoder.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Every frame in order, uint8 (H, W, 3)."""
        for _, frame in self._decoder.from_start():
            yield self._image(frame)
        self._report_damage()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._decoder.close()

    def frames_at(
        self, times: Sequence[float] | NDArray[np.float64]
    ) -> Iterator[NDArray[np.uint8]]:
        """The frame on screen at each time, uint8 (H, W, 3), one at a time.

        ``times`` are seconds after the first frame, in ascending order. A time before the first
        frame gives the first one, a time after the end the last one; where the file ends before
        the end that it announces, a VideoWarning says so.
        """
        seconds = np.asarray(times, dtype=np.float64)
        if seconds.ndim != 1 or not np.isfinite(seconds).all() or (np.diff(seconds) < 0).any():
            raise ValueError("frames_at: times must be finite, one-dimensional and ascending")
        yield from self._images(self._stamps(seconds))
        self._report_damage()
        self._report_end(seconds)

    def frames_by_index(
        self, indices: Sequence[int] | NDArray[np.int64]
    ) -> Iterator[NDArray[np.uint8]]:
        """The frames of these numbers, as counted in a plain reading, uint8 (H, W, 3).

        ``indices`` count from 0 and are in ascending order. The first call reads through the
        file's packets once, without decoding, to know every frame's time; `frames_at` does not
        need to. A number past the last frame gives the last frame, and a VideoWarning.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.ndim != 1 or (wanted < 0).any() or (np.diff(wanted) < 0).any():
            raise ValueError(
                "frames_by_index: indices must be one-dimensional, ascending and not negative"
            )
        if wanted.size == 0:
            return
        stamps, _ = self._packets()
        if stamps.size and np.unique(stamps).size == stamps.size:
            count = stamps.size
            yield from self._images(stamps[np.minimum(wanted, count - 1)].tolist())
        else:
            count = yield from self._counted(wanted)
        self._report_damage()
        if wanted[-1] >= count:
            self._warn(f"has {count} frames, number {wanted[-1]} was asked for; the last repeats")

    def frame_times(self) -> NDArray[np.float64]:
        """When each frame appears, in seconds after the first; read from packets, not decoded."""
        stamps, _ = self._packets()
        return np.asarray((stamps - self._decoder.first_stamp) * self._tick, dtype=np.float64)

    @property
    def _tick(self) -> float:
        return float(self._decoder.stream.time_base or 1)

    def _packets(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._scan is None:
            self._scan = scan_stamps(self.path, max_pixels=self._max_pixels)
        return self._scan

    def _stamps(self, seconds: NDArray[np.float64]) -> list[int]:
        """Seconds to stamps; a time computed as i / fps must not fall one tick short of frame i."""
        slack = min(0.5, 0.05 / (self._tick * self.info.fps))
        ticks = np.floor(seconds / self._tick + slack)
        limit = 2.0**62  # beyond any file; keeps a time such as 1e30 an integer
        first = self._decoder.first_stamp
        return [first + int(t) for t in np.clip(ticks, -limit, limit)]

    def _images(self, stamps: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        shown: VideoFrame | None = None
        image: NDArray[np.uint8] | None = None
        for _, frame in self._decoder.at(stamps):
            if image is None or frame is not shown:
                shown, image = frame, self._image(frame)
            yield image

    def _counted(self, wanted: NDArray[np.int64]) -> Generator[NDArray[np.uint8], None, int]:
        """Frames by counting them, for files whose packets bear no usable times."""
        position, count = 0, 0
        frame: VideoFrame | None = None
        for _, frame in self._decoder.from_start():
            while position < wanted.size and wanted[position] == count:
                yield self._image(frame)
                position += 1
            count += 1
            if position == wanted.size:
                return count
        while frame is not None and position < wanted.size:
            yield self._image(frame)
            position += 1
        return count

    def _image(self, frame: VideoFrame) -> NDArray[np.uint8]:
        # A stream may change its size on the way; a clip has one size, that of the first frame.
        width, height = self._size
        rgb = self._to_rgb.reformat(frame, width, height, "rgb24").to_ndarray()
        return np.ascontiguousarray(apply_orientation(rgb, self._orientation), dtype=np.uint8)

    def _inform(self) -> VideoInfo:
        stream, container = self._decoder.stream, self._decoder.container
        width, height = self._size
        turned = is_turned(self._orientation)
        duration, fps = self._announced_duration(), self._announced_rate()
        if duration is None or fps is None:
            stamps, lengths = self._packets()
            count = max(1, stamps.size or lengths.size)
            if duration is None and stamps.size:
                last = float(lengths[-1]) or float(np.median(np.diff(stamps))) if count > 1 else 0.0
                duration = (float(stamps[-1] - self._decoder.first_stamp) + last) * self._tick
            if duration is None or duration <= 0:
                duration = count / (fps or 25.0)
            fps = fps or count / duration
        return VideoInfo(
            path=self.path,
            container=container.format.name,
            codec=stream.codec_context.name,
            width=height if turned else width,
            height=width if turned else height,
            turned=turned,
            fps=fps,
            duration=duration,
            num_frames=max(1, round(duration * fps)),
            has_audio=any(s.type == "audio" for s in container.streams),
        )

    def _announced_duration(self) -> float | None:
        stream, container = self._decoder.stream, self._decoder.container
        if stream.duration is not None and stream.duration > 0:
            return stream.duration * self._tick
        start = self._decoder.first_stamp * self._tick
        # Matroska names the end of each track in a tag (hh:mm:ss.fraction).
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
        if tag is not None:
            end = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
            return end - start if end > start else None
        if container.duration is not None and container.duration > 0:
            begin = (container.start_time or 0) / 1e6
            end = begin + container.duration / 1e6
            return end - start if end > start else None
        return None

    def _announced_rate(self) -> float | None:
        stream = self._decoder.stream
        if orders_only(self._decoder.container):
            # AVI's rate may be that of its clock, twice the rate of frames; its index has them all.
            seconds = self._announced_duration()
            if seconds is not None and len(stream.index_entries) > 1:
                return len(stream.index_entries) / seconds
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        for rate in rates:
            if rate is not None and 0 < rate < 1000 and math.isfinite(float(rate)):
                return float(rate)
        return None

    def _report_damage(self) -> None:
        if self._decoder.damaged:
            count, self._decoder.damaged = self._decoder.damaged, 0
            self._warn(f"is damaged: {count} packets could not be decoded; the rest was used")

    def _report_end(self, seconds: NDArray[np.float64]) -> None:
        last = self._decoder.last_stamp
        if last is None or seconds.size == 0:
            return
        end = (last - self._decoder.first_stamp) * self._tick + 1 / self.info.fps
        missing = min(self.info.duration, float(seconds[-1])) - end
        if missing > max(0.2, 2 / self.info.fps):
            self._warn(
                f"ends after {end:.2f} s of the {self.info.duration:.2f} s that it announces; "
                "its last frame stands for the rest"
            )

    def _warn(self, text: str) -> None:
        warnings.warn(VideoWarning(f"{self.path}: {text}"), stacklevel=3)


def probe(
    path: str | PathLike[str], *, threads: int = 1, max_pixels: int = MAX_PIXELS
) -> VideoInfo:
    """Describe a video; decodes one frame, so that what is returned can be read."""
    with VideoReader(path, threads=threads, max_pixels=max_pixels) as reader:
        return reader.info


def read_frames(
    path: str | PathLike[str],
    *,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    times: Sequence[float] | NDArray[np.float64] | None = None,
    threads: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Read some frames, by number or by time in seconds, as uint8 (T, H, W, 3) in RGB.

    One of ``indices`` and ``times`` is given, in any order and with repeats; their meaning is
    that of `VideoReader.frames_by_index` and `VideoReader.frames_at`.

    Raises: ValueError for both or neither, and what VideoReader raises.
    """
    if (indices is None) == (times is None):
        raise ValueError("read_frames: expected either indices or times")
    wanted = np.asarray(indices if times is None else times)
    if wanted.ndim != 1:
        raise ValueError(f"read_frames: expected a flat list, got shape {wanted.shape}")
    order = np.argsort(wanted, kind="stable")
    with VideoReader(path, threads=threads, max_pixels=max_pixels) as reader:
        frames = np.empty((wanted.size, reader.info.height, reader.info.width, 3), dtype=np.uint8)
        if times is None:
            images = reader.frames_by_index(wanted[order].astype(np.int64))
        else:
            images = reader.frames_at(wanted[order].astype(np.float64))
        for position, image in zip(order, images, strict=True):
            frames[position] = image
    return frames
