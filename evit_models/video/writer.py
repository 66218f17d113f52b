"""Writing frames as a video file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from os import PathLike, fspath

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

__all__ = ["write_video"]

# In this order where the caller names no codec; not every build of the encoder library has H.264.
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
_WEBM_ENCODERS = ("libvpx-vp9", "libvpx")


def write_video(
    path: str | PathLike[str],
    frames: Iterable[NDArray[np.uint8]],
    fps: float | Fraction = 25,
    *,
    codec: str | None = None,
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> int:
    """Encode RGB frames, each uint8 (H, W, 3), into a file whose name decides the container.

    ``frames`` may be an array (T, H, W, 3) or any iterable; frames are encoded as they come, so
    memory does not grow with length. ``fps`` is in frames per second. Without ``codec`` it is VP9
    for WebM, else H.264 where the library has it, else MPEG-4. ``options`` go to the encoder, such
    as ``{"g": "12"}``.

    Returns: the number of frames written.
    Raises: ValueError for frames that are no RGB images of one even size, for no frames at all,
    and for a codec or a container that the encoder library does not know; OSError where the file
    cannot be written.
    """
    usual = _WEBM_ENCODERS if fspath(path).endswith(".webm") else _ENCODERS
    name = codec if codec is not None else next(n for n in usual if _can_encode(n))
    if not _can_encode(name):
        raise ValueError(f"write_video: codec {name!r} is no encoder of this build of PyAV")
    rate = Fraction(fps).limit_denominator(100_000)
    if rate <= 0:
        raise ValueError(f"write_video: fps is {fps}, expected a positive number")
    try:
        with av.open(fspath(path), "w") as container:
            return _encode(container, frames, name, rate, pixel_format, dict(options or {}))
    except av.error.FFmpegError as error:
        raise OSError(f"write_video: cannot write {fspath(path)}: {error.strerror}") from error


def _encode(
    container: OutputContainer,
    frames: Iterable[NDArray[np.uint8]],
    codec: str,
    rate: Fraction,
    pixel_format: str,
    options: dict[str, str],
) -> int:
    count = 0
    stream: VideoStream | None = None
    for frame in frames:
        image = np.asarray(frame)
        if stream is None:
            _check_image(image, pixel_format)
            added = container.add_stream(codec, rate=rate, options=options)
            if not isinstance(added, VideoStream):
                raise ValueError(f"write_video: codec {codec!r} does not encode video")
            stream = added
            stream.height, stream.width = image.shape[:2]
            stream.pix_fmt = pixel_format
        elif image.shape != (stream.height, stream.width, 3):
            raise ValueError(
                f"write_video: frame {count} has shape {image.shape}, "
                f"the first one {(stream.height, stream.width, 3)}"
            )
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        container.mux(stream.encode(picture))
        count += 1
    if stream is None:
        raise ValueError("write_video: frames is empty, expected at least one frame")
    container.mux(stream.encode(None))
    return count


def _can_encode(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _check_image(image: NDArray[np.uint8], pixel_format: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"write_video: frames have shape {image.shape} and dtype {image.dtype}, "
            "expected (H, W, 3) and uint8"
        )
    if pixel_format == "yuv420p" and (image.shape[0] % 2 or image.shape[1] % 2):
        raise ValueError(
            f"write_video: frames are {image.shape[1]} x {image.shape[0]}, "
            "expected an even width and height (yuv420p halves the colours)"
        )
