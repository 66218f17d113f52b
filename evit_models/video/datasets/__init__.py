"""Datasets of clips: real files by list, folder or EPIC-Kitchens, and clips made on the spot."""

from .base import ClipDataset, DatasetError, Sample, TooManyBadVideos
from .dummy import DummyClips
from .motion import MotionClips

__all__ = [
    "ClipDataset",
    "DatasetError",
    "DummyClips",
    "MotionClips",
    "Sample",
    "TooManyBadVideos",
]
