"""Sizes of the tiles of depthwise_conv3d's Triton kernels: looked up, never searched at run time.

The table, triton_tiles.json, is written by benchmarks/triton_tiles.py and says how it was found.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import triton
from torch import Tensor

from evit_kernels import _layout, _triton
from evit_kernels.depthwise_conv3d.geometry import Geometry

TABLE = Path(__file__).resolve().parent / "triton_tiles.json"
STRIP = 4  # output rows of a position, as the kernels have it
REGISTERS = 168  # of a thread: three blocks of four warps then fit a multiprocessor
PLANES = 0  # the bucket of tensors whose channels are not next to each other
BUCKETS = (PLANES, 16, 32, 64)


class Tile(NamedTuple):
    """What a program works on at a time: positions by channels; and its warps."""

    positions: int
    channels: int
    warps: int


class Key(NamedTuple):
    """What the table is looked up by.

    Args:
        architecture: 90 for sm_90.
        bits: of the storage type, 16 or 32.
        kernel: "forward" (also the data gradient at stride 1), "scatter" (at others), "weight".
        taps: 3, 5 or 7, at least the kernel's height and width.
        stride: 1, or 2 for anything larger, of height and width.
        channels: 16, 32 or 64 at a time; PLANES where they are not next to each other.
    """

    architecture: int
    bits: int
    kernel: str
    taps: int
    stride: int
    channels: int

    def __str__(self) -> str:
        """As the table has it."""
        where = f"{self.channels} channels" if self.channels else "planes"
        return (
            f"sm_{self.architecture} {self.bits}-bit {self.kernel} {self.taps} taps "
            f"stride {self.stride} {where}"
        )


def tile(kernel: str, y: Tensor, geometry: Geometry) -> Tile:
    """Returns the tile of a kernel whose programs go over the positions and channels of `y`."""
    architecture = _triton.architecture(y)
    wide: int = triton.next_power_of_2(y.shape[1])
    if not architecture:
        # The interpreter: the fewer programs, the faster.
        return Tile(256, min(wide, 64), 4)
    planar = not _layout.is_channels_last(y)
    key = Key(
        architecture,
        8 * y.element_size(),
        kernel,
        max(3, max(geometry.kernel[1:]) // 2 * 2 + 1),
        min(2, max(geometry.stride[1:])),
        PLANES if planar else min(64, max(16, wide)),
    )
    found = look_up(key)
    return _for_planes(found, y) if planar else found


def _for_planes(found: Tile, y: Tensor) -> Tile:
    """Takes several channels at a time where a plane does not fill the tile."""
    needed: int = triton.next_power_of_2(triton.cdiv(y.shape[3], STRIP) * y.shape[4])
    positions = max(16, min(found.positions, needed))
    return Tile(positions, found.positions // positions, found.warps)


@lru_cache(maxsize=1024)
def look_up(key: Key) -> Tile:
    """Returns the tile of a key; of an architecture that is not there, the one before it."""
    tiles = _table()
    known = sorted({int(name.split()[0].removeprefix("sm_")) for name in tiles})
    below = [number for number in known if number <= key.architecture]
    nearest = key._replace(architecture=below[-1] if below else known[0])
    return tiles[str(nearest)]


@lru_cache(maxsize=1)
def _table() -> dict[str, Tile]:
    return {name: Tile(*sizes) for name, sizes in json.loads(TABLE.read_text())["tiles"].items()}
