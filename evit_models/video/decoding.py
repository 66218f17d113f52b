"""From a point in time to decoded frames: seeking, damage, and the end of the file.

Timestamps here are "stamps": integers in the stream's own time base. `reader.py` turns them into
seconds and frame numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from os import PathLike
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .errors import CorruptVideo, VideoTooLarge
from .opening import open_container, open_video_stream

__all__ = ["Decoder", "Shown", "orders_only", "scan_stamps"]

# Without an index of keyframes, a gap up to this many seconds is decoded through: encoders place
# keyframes 1 to 10 s apart, and a seek that lands where we are already would decode twice.
_GAP_WITHOUT_INDEX = 10.0

# Containers that list all their keyframes; others list those that were come across, or none.
_COMPLETE_INDEX = ("mov,", "avi")

# A demuxer that fails this often in a row is not going to recover.
_MOST_READ_ERRORS = 8

Shown = tuple[int, VideoFrame]  # a frame and the stamp from which on it is shown


class Decoder:
    """One open file, one video stream, and frames of it by stamp; use with ``with``.

    ``damaged`` counts packets that would not decode, ``last_stamp`` is the last frame's stamp once
    the end of the file has been seen.
    """

    def __init__(self, path: str | PathLike[str], *, threads: int, max_pixels: int) -> None:
        self.path = path
        self.damaged = 0
        self.last_stamp: int | None = None
        self._threads = threads
        self._max_pixels = max_pixels
        self._untouched: Iterator[Shown] | None = None
        self._open()
        # AVI knows no times of presentation, only the order of its packets: the n-th frame shown
        # takes the n-th packet's stamp, which survives a seek only where nothing is reordered.
        self._by_order = orders_only(self.container)
        self._seekable = not (self._by_order and self.stream.codec_context.has_b_frames)
        self._far = _GAP_WITHOUT_INDEX / float(self.stream.time_base or 1)
        try:
            self.first_frame, self.first_stamp = self._look_at_first()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self.container.close()

    def from_start(self) -> Iterator[Shown]:
        """Every frame of the stream, in the order of presentation."""
        if self._untouched is None:
            # A seek to the start may land after frames that a plain reading yields.
            self.container.close()
            self._open()
            return self._decode(leading=True)
        frames, self._untouched = self._untouched, None
        return frames

    def at(self, targets: Sequence[int]) -> Iterator[Shown]:
        """For each stamp, in ascending order, the frame that is on screen then.

        That is the last frame whose stamp is not above the target; the first frame for earlier
        targets, the last one for later targets. Decodes only from the keyframe before a target.
        """
        frames: Iterator[Shown] | None = None
        held: Shown | None = None
        ahead: Shown | None = None
        for target in targets:
            if frames is None and self._untouched is not None:
                frames = self.from_start()
                held = ahead = next(frames, None)
            if frames is None or (ahead is not None and self._worth_seeking(ahead[0], target)):
                before = ahead
                frames, ahead = self._start_before(target)
                held = ahead
                if before is not None and ahead is not None and ahead[0] <= before[0]:
                    self._far *= 2  # no keyframe in between: they are further apart than thought
            while ahead is not None and ahead[0] <= target:
                held, ahead = ahead, next(frames, None)
            if held is None:  # possible only where the file changes while it is read
                raise CorruptVideo(self.path, "its first frame can be decoded only once")
            yield held

    def _open(self) -> None:
        self.container: InputContainer = open_container(self.path, max_pixels=self._max_pixels)
        try:
            self.stream: VideoStream = open_video_stream(
                self.container, self.path, threads=self._threads, max_pixels=self._max_pixels
            )
        except BaseException:
            self.container.close()
            raise

    def _look_at_first(self) -> tuple[VideoFrame, int]:
        """The first frame and its stamp; the decoder stays ready to yield that frame again."""
        frames = self._decode(leading=True)
        first = next(frames, None)
        if first is None:
            raise CorruptVideo(self.path, "not a single frame can be decoded")
        self._untouched = chain([first], frames)
        stamp, frame = first
        start = self.stream.start_time
        return frame, stamp if start is None else min(start, stamp)

    def _start_before(self, target: int) -> tuple[Iterator[Shown], Shown | None]:
        """Begin decoding at a keyframe at or before the target; at the file's start if need be."""
        tick = float(self.stream.time_base or 1)
        step = max(1, round(1.0 / tick))
        guess = target
        while guess > self.first_stamp and self._seekable and self._seek(guess):
            frames = self._decode(leading=False)
            first = next(frames, None)
            if first is not None and first[0] <= target:
                return frames, first
            guess, step = guess - step, step * 2
        frames = self.from_start()
        return frames, next(frames, None)

    def _seek(self, stamp: int) -> bool:
        self._untouched = None
        try:
            self.container.seek(stamp, stream=self.stream, backward=True)
        except (av.error.FFmpegError, OverflowError):
            return False
        return True

    def _worth_seeking(self, position: int, target: int) -> bool:
        """Whether a keyframe lies between the position of the decoder and the target."""
        if target <= position:
            return False
        index = self.stream.index_entries
        if len(index) > 1:
            found = index.search_timestamp(target, backward=True)
            if found >= 0 and index[found].timestamp > position:
                return True
            if self.container.format.name.startswith(_COMPLETE_INDEX):
                return False
        return target - position > self._far

    def _decode(self, *, leading: bool) -> Iterator[Shown]:
        """Frames from where the file stands; after a seek, none that precede the keyframe.

        Such leading frames refer to pictures before the keyframe, which were not decoded.
        """
        begin: int | None = None
        last: int | None = None
        order: deque[int] = deque()
        for packet in self._packets():
            if not leading and begin is None:
                if not packet.is_keyframe:
                    continue
                begin = packet.dts if self._by_order else _stamp_of(packet)
            if self._by_order and packet.dts is not None:
                order.append(packet.dts)
            for frame in self._frames(packet):
                stamp = None if self._by_order else _stamp_of(frame)
                if stamp is None and order:
                    stamp = order.popleft()
                if stamp is None:
                    stamp = 0 if last is None else last + self._ticks_per_frame()
                last = stamp if last is None else max(last, stamp)
                if begin is None or stamp >= begin:
                    yield stamp, frame
        if last is not None:
            self.last_stamp = last if self.last_stamp is None else max(last, self.last_stamp)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Packets of the stream, then the one that flushes the decoder; survives bad regions."""
        failures = 0
        while failures < _MOST_READ_ERRORS:
            try:
                for packet in self.container.demux(self.stream):
                    failures = 0
                    yield packet
                return
            except av.error.FFmpegError:
                failures += 1
                self.damaged += 1
        flush: Packet[VideoStream] = Packet()  # type: ignore[assignment]
        yield flush

    def _frames(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        ends = packet.dts is None and packet.pts is None
        if not packet.size and not ends:
            return []  # an empty AVI chunk: the picture before stays on screen
        try:
            return self.stream.decode(packet if packet.size else None)
        except EOFError:
            return []
        except av.error.ArgumentError as error:
            # The decoder refuses to open for a coded size above its limit.
            raise VideoTooLarge(
                self.path, f"the decoder refuses its frames (limit {self._max_pixels:,} pixels)"
            ) from error
        except av.error.FFmpegError:
            self.damaged += 1
            return []

    def _ticks_per_frame(self) -> int:
        rate, base = self.stream.average_rate, self.stream.time_base
        return max(1, round(1 / (rate * base))) if rate and base else 1


def orders_only(container: InputContainer) -> bool:
    """Whether the container stores no times of presentation, only an order."""
    return container.format.name == "avi"


def scan_stamps(
    path: str | PathLike[str], *, max_pixels: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stamps and the durations of all frames, ascending, read from packets without decoding.

    Constant work per packet and 16 bytes of memory per frame. The stamps are empty where packets
    do not say when their frame is shown.
    """
    stamps: list[int] = []
    lengths: list[int] = []
    complete = True
    with open_container(path, max_pixels=max_pixels) as container:
        stream = open_video_stream(container, path, max_pixels=max_pixels)
        by_order = orders_only(container)
        # A VP8 packet may hold a picture that is only referred to (RFC 6386, 9.1: show_frame).
        hides = stream.codec_context.name in ("vp8", "libvpx")
        for packet in _until_damage(container, stream):
            if not packet.size or packet.is_discard:
                continue
            if hides and not bytes(packet)[0] & 0x10:
                continue
            stamp = packet.dts if by_order else packet.pts
            if stamp is None:
                complete = False
            else:
                stamps.append(stamp)
            lengths.append(packet.duration or 0)
    sizes = np.array(lengths, dtype=np.int64)
    if not complete:
        return np.empty(0, dtype=np.int64), sizes
    array = np.array(stamps, dtype=np.int64)
    order = np.argsort(array, kind="stable")
    return array[order], sizes[order]


def _until_damage(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return


def _stamp_of(timed: Packet[VideoStream] | VideoFrame) -> int | None:
    return timed.pts if timed.pts is not None else timed.dts
