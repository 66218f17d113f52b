"""Small videos whose every frame bears its number, made in the tests."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CELL, BITS = 8, 12


def numbered_frame(number: int, width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """A grey frame with its number in black and white cells, twelve bits from the top left on."""
    frame = np.full((height, width, 3), 128, dtype=np.uint8)
    frame[height // 2 :, :, 0] = (number * 3) % 256
    for bit, (rows, columns) in enumerate(_cells(width)):
        frame[rows, columns] = 255 if number >> bit & 1 else 0
    return frame


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number that `numbered_frame` wrote, whatever a codec has done to the pixels."""
    cells = [frame[rows, columns].mean() > 128 for rows, columns in _cells(frame.shape[1])]
    return sum(int(bit) << position for position, bit in enumerate(cells))


def numbers_of(frames: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> list[int]:
    return [number_of(frame) for frame in frames]


def encode(
    path: Path,
    count: int = 60,
    *,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    fps: int = 25,
    options: dict[str, str] | None = None,
    sound: bool = False,
    stamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write numbered frames, with a tone if wanted, at given stamps if the rate is to vary."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=dict(options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if time_base is not None:
            stream.codec_context.time_base = time_base
        tone = (
            container.add_stream("libopus" if path.suffix == ".webm" else "aac") if sound else None
        )
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            for block in _tone(count / fps):
                container.mux(tone.encode(block))
            container.mux(tone.encode(None))
    return path


def set_display_matrix(path: Path, matrix: Sequence[int]) -> None:
    """Patch the nine numbers of the first track header of an MP4 (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 4
    assert data[begin] == 0, "expected version 0 of the track header"
    # version and flags, two dates, track, reserved, duration; reserved; layer, group, volume.
    struct.pack_into(">9i", data, begin + 4 + 20 + 8 + 8, *matrix)
    path.write_bytes(bytes(data))


def _cells(width: int) -> Iterator[tuple[slice, slice]]:
    columns = width // CELL
    for bit in range(BITS):
        row, column = divmod(bit, columns)
        yield slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)


def _tone(seconds: float) -> Iterator[av.AudioFrame]:
    rate, block = 48000, 960
    for start in range(0, int(seconds * rate), block):
        wave = np.sin(2 * np.pi * 440 * np.arange(start, start + block) / rate) * 8000
        stereo = np.repeat(wave.astype(np.int16)[None], 2, axis=0).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(stereo), "s16", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame
