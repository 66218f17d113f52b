"""Datasets of clips: real files by list, folder or EPIC-Kitchens, and clips made on the spot."""

from .base import ClipDataset, DatasetError, Label, Sample, TooManyBadVideos
from .dummy import DummyClips
from .epic_kitchens import EpicKitchens
from .files import Segment, VideoFiles
from .lists import VideoFolder, VideoList
from .motion import MotionClips

__all__ = [
    "ClipDataset",
    "DatasetError",
    "DummyClips",
    "EpicKitchens",
    "Label",
    "MotionClips",
    "Sample",
    "Segment",
    "TooManyBadVideos",
    "VideoFiles",
    "VideoFolder",
    "VideoList",
]
