"""Video: from a file that nobody vouches for to a clip that a network takes."""

from .augment import ColorJitter, RandomErasing, TrainTransform
from .errors import (
    CorruptVideo,
    NotAVideo,
    RefusedVideo,
    VideoError,
    VideoNotFound,
    VideoTooLarge,
    VideoWarning,
)
from .mixing import MixClips
from .opening import MAX_PIXELS
from .rand_augment import RandAugment
from .reader import VideoInfo, VideoReader, probe, read_frames
from .sampling import ClipSampling, dense_indices, segment_indices, view_indices
from .transform import ClipTransform, center_crop, normalize, resize_short_side, three_crops
from .writer import write_video

__all__ = [
    "MAX_PIXELS",
    "ClipSampling",
    "ClipTransform",
    "ColorJitter",
    "CorruptVideo",
    "MixClips",
    "NotAVideo",
    "RandAugment",
    "RandomErasing",
    "RefusedVideo",
    "TrainTransform",
    "VideoError",
    "VideoInfo",
    "VideoNotFound",
    "VideoReader",
    "VideoTooLarge",
    "VideoWarning",
    "center_crop",
    "dense_indices",
    "normalize",
    "probe",
    "read_frames",
    "resize_short_side",
    "segment_indices",
    "three_crops",
    "view_indices",
    "write_video",
]
