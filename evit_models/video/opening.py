"""Opening an untrusted file as a video: what is accepted, and how large a frame may be."""

from __future__ import annotations

import os
import stat
from os import PathLike

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from .errors import CorruptVideo, NotAVideo, RefusedVideo, VideoNotFound, VideoTooLarge

__all__ = ["ACCEPTED_FORMATS", "MAX_PIXELS", "open_container", "open_video_stream"]

#: Demuxers that may look at a file. Everything else, playlists above all, is refused unread.
ACCEPTED_FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts")

#: The largest accepted frame, in pixels: 8192 x 4320, the widest format in common use.
MAX_PIXELS = 8192 * 4320

# How files begin that make a demuxer open other files. The whitelist keeps them out; this list
# only lets the message say what the file is.
_PLAYLISTS = {
    b"ffconcat": "an ffconcat playlist",
    b"#EXTM3U": "an M3U playlist",
    b"<MPD": "a DASH manifest",
    b"<smil": "a SMIL playlist",
    b"[playlist]": "a PLS playlist",
}


def open_container(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> InputContainer:
    """Open a local file as one of the accepted containers, and nothing else as anything else.

    The caller closes the container (``with open_container(...) as container``). ``max_pixels``
    reaches the decoders that look at the first packets, before this function returns.

    Raises: VideoNotFound, NotAVideo, RefusedVideo, CorruptVideo.
    """
    head = _read_head(path)
    # The explicit protocol keeps a name such as `concat:a|b` or `12:30.mp4` a plain file name.
    url = "file:" + os.path.abspath(os.fspath(path))
    try:
        return av.open(
            url,
            # Generous, so that a frame just above the limit is named, and not called corrupt.
            options={"max_pixels": str(2 * max_pixels + 64 * 1024)},
            container_options={
                "format_whitelist": ",".join(ACCEPTED_FORMATS),
                "protocol_whitelist": "file",
            },
        )
    except (av.error.FFmpegError, UnicodeError) as error:
        raise _why_not(path, head, error) from error


def open_video_stream(
    container: InputContainer,
    path: str | PathLike[str],
    *,
    threads: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> VideoStream:
    """Pick the video stream to decode and limit its decoder to ``threads`` and ``max_pixels``.

    Raises: NotAVideo (no video stream), CorruptVideo (no decoder), VideoTooLarge.
    """
    # Cover pictures of music files are video streams too, but not videos.
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams}))
        raise NotAVideo(path, f"holds no video stream, only {kinds or 'an empty container'}")
    stream = next((s for s in streams if s.disposition & s.disposition.default), streams[0])
    if stream.codec_context is None:
        raise CorruptVideo(path, "its video stream has no known codec")

    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        raise VideoTooLarge(
            path,
            f"frames of {width} x {height} = {width * height:,} pixels exceed the limit of "
            f"{max_pixels:,} (max_pixels)",
        )
    # Frames may grow in the middle of a stream, so the decoder keeps the limit as well.
    limit = max(max_pixels, _in_blocks(width, height))
    stream.codec_context.options = {"max_pixels": str(limit)}
    stream.codec_context.thread_count = threads
    stream.codec_context.thread_type = "AUTO"
    return stream


def _in_blocks(width: int, height: int) -> int:
    """Pixels of the buffer that a decoder asks for: sizes are rounded up to whole blocks."""
    return (width + 63) // 64 * 64 * ((height + 63) // 64 * 64)


def _read_head(path: str | PathLike[str]) -> bytes:
    """The first bytes of a regular, non-empty file; anything else is an error that says so."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise NotAVideo(path, "is a folder, not a video file")
        if not stat.S_ISREG(mode):
            raise NotAVideo(path, "is not a regular file")
        with open(path, "rb") as file:
            head = file.read(1024)
    except FileNotFoundError as error:
        raise VideoNotFound(path, "no such file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VideoNotFound(path, f"cannot be opened: {reason}") from error
    if not head:
        raise NotAVideo(path, "is empty (0 bytes)")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, what in _PLAYLISTS.items():
        if text[: len(start)].lower() == start.lower():
            raise RefusedVideo(path, f"is {what}, which names other files; refused")
    return head


def _why_not(path: str | PathLike[str], head: bytes, error: Exception) -> Exception:
    """Tell a damaged video from a file that never was one, by the file's first bytes."""
    looks_like = None
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        looks_like = "an MP4 or MOV file whose index (the moov box) is missing or damaged"
    elif head[:4] == b"\x1a\x45\xdf\xa3":
        looks_like = "a Matroska or WebM file whose header is damaged"
    elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        looks_like = "an AVI file whose header is damaged"
    if looks_like is not None:
        return CorruptVideo(path, f"looks like {looks_like}; was it cut short?")
    if isinstance(error, av.error.PermissionError):
        return VideoNotFound(path, "cannot be opened: permission denied")
    accepted = "MP4/MOV, Matroska/WebM, AVI, MPEG-TS"
    return NotAVideo(path, f"is not a video in an accepted container ({accepted})")
