"""The display matrix of a video: how phones say which way is up."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

__all__ = ["UPRIGHT", "Orientation", "apply_orientation", "is_turned", "orientation_of"]

#: Signs of the 2 x 2 part of the display matrix, (a, b, c, d), for rows times matrix:
#: a pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift (ISO/IEC 14496-12, 8.3.2).
Orientation = tuple[int, int, int, int]

UPRIGHT: Orientation = (1, 0, 0, 1)


def orientation_of(frame: VideoFrame) -> Orientation:
    """The orientation that a decoded frame asks for; upright if it names none."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(bytes(data), dtype=np.int32)
    if matrix.size < 9:
        return UPRIGHT
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    # Quarter turns and mirrors only: a matrix in between is no way a camera was held.
    if min(abs(a), abs(d)) > 16 * max(abs(b), abs(c)):
        return (_sign(a), 0, 0, _sign(d))
    if min(abs(b), abs(c)) > 16 * max(abs(a), abs(d)):
        return (0, _sign(b), _sign(c), 0)
    return UPRIGHT


def apply_orientation(image: NDArray[Any], orientation: Orientation) -> NDArray[Any]:
    """Turn an image (H, W, C) the way it is meant to be shown; a view, no pixel is computed."""
    a, b, c, d = orientation
    if b and c:
        image = image.transpose(1, 0, 2)
        flip_rows, flip_columns = b < 0, c < 0
    else:
        flip_rows, flip_columns = d < 0, a < 0
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def is_turned(orientation: Orientation) -> bool:
    """Whether width and height change places."""
    return orientation[1] != 0


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
