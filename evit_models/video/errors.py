"""What can be wrong with a video file, as types."""

from __future__ import annotations

from os import PathLike, fspath

__all__ = [
    "CorruptVideo",
    "NotAVideo",
    "RefusedVideo",
    "VideoError",
    "VideoNotFound",
    "VideoTooLarge",
    "VideoWarning",
]


class VideoError(Exception):
    """A video cannot be read; carries ``path`` and ``reason``, and prints as ``path: reason``."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        # Both arguments go to Exception, so that the error survives pickling between processes.
        super().__init__(fspath(path), reason)
        self.path = fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class VideoNotFound(VideoError):
    """The path does not exist or may not be opened."""


class NotAVideo(VideoError):
    """The path is a folder, an empty file, or content that is no video in an accepted container."""


class RefusedVideo(NotAVideo):
    """The file is a playlist that would open other files, whatever its name says."""


class CorruptVideo(VideoError):
    """The container is of an accepted kind, but no frame can be decoded from it."""


class VideoTooLarge(VideoError):
    """A frame has more pixels than the limit allows."""


class VideoWarning(UserWarning):
    """A video was read, but not all of it was there."""
