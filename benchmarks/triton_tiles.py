"""Makes the table of tile sizes of depthwise_conv3d's Triton kernels.

    python benchmarks/triton_tiles.py                 measures, on a GPU, and prints what it found
    python benchmarks/triton_tiles.py --write         and writes triton_tiles.json
    python benchmarks/triton_tiles.py --by-registers  without a GPU: the largest tile of each kernel
                                                      that uses no stack and at most 168 registers

Measuring replaces the lines of the GPU that is here, and leaves those of others. Without a GPU it
says so and ends with 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any
from unittest import mock

import torch
import triton
import triton_code
from torch import Tensor

from evit_kernels.depthwise_conv3d import triton as depthwise
from evit_kernels.depthwise_conv3d import triton_tiles
from evit_kernels.depthwise_conv3d.geometry import Geometry
from evit_kernels.depthwise_conv3d.triton_tiles import BUCKETS, PLANES, REGISTERS, TABLE, Key, Tile

ARCHITECTURES = (80, 87, 90)
KERNELS = {"forward": "convolve", "scatter": "scatter", "weight": "weigh"}
WARPS = 4
_DTYPES = {16: torch.bfloat16, 32: torch.float32}


def keys(architectures: tuple[int, ...]) -> list[Key]:
    """Returns every line of the table."""
    every = product(architectures, (16, 32), KERNELS, (3, 5, 7), (1, 2), BUCKETS)
    return [Key(*key) for key in every if not (key[2] == "scatter" and key[4] == 1)]


def candidates(key: Key) -> list[Tile]:
    """Returns tiles to try, the largest first: whole 16-byte loads for each thread, or a half."""
    if key.channels == PLANES:
        sizes = [Tile(32 * WARPS * elements, 1, WARPS) for elements in (4, 2, 1)]
    else:
        per_load = 128 // key.bits
        sizes = [
            Tile(32 * WARPS * per_load * loads // key.channels, key.channels, WARPS)
            for loads in (2, 1)
        ]
        sizes.append(sizes[-1]._replace(positions=sizes[-1].positions // 2))
    return sizes


def by_registers(key: Key) -> Tile:
    """Returns the largest tile that keeps within the registers of a thread, without any stack."""
    for size in candidates(key):
        if all(code.stack == 0 for code in _compile(key, size)):
            return size
    raise RuntimeError(f"{key}: every tile spills")


def _alike(key: Key) -> Key:
    """Threads of all numbers of channels do the same, so one number is compiled for all."""
    return key if key.channels == PLANES else key._replace(channels=64)


def _scaled(size: Tile, channels: int) -> Tile:
    return Tile(size.positions * size.channels // channels, channels, size.warps)


def _compile(key: Key, size: Tile) -> Iterator[triton_code.Code]:
    """Compiles what the kernel is used for: forward, it convolves, recomputes, differentiates."""
    with (
        mock.patch.object(triton_tiles, "look_up", return_value=size),
        triton_code.recorded(key.architecture) as launches,
    ):
        _call(key, torch.device("meta"))
    for launch in launches:
        if launch.kernel.__name__ == KERNELS[key.kernel]:
            yield triton_code.compiled(launch, key.architecture)


def measured(key: Key) -> Tile:
    """Returns the tile with the shortest time on the GPU that is here."""
    times: dict[Tile, float] = {}
    for size in candidates(key):
        with mock.patch.object(triton_tiles, "look_up", return_value=size):
            times[size] = triton.testing.do_bench(_kernel_call(key, torch.device("cuda")))
    return min(times, key=lambda size: times[size])


def _kernel_call(key: Key, device: torch.device) -> Callable[[], object]:
    x, weight, bias, geometry = _arguments(key, device)
    if key.kernel == "forward":
        return lambda: depthwise.forward(x, weight, bias, geometry, "hardswish")
    needed = [key.kernel == "scatter", key.kernel == "weight", key.kernel == "weight"]
    grad = depthwise.forward(x, weight, bias, geometry, "none")
    return lambda: depthwise.backward(grad, x, weight, bias, geometry, "none", needed)


def _call(key: Key, device: torch.device) -> None:
    x, weight, bias, geometry = _arguments(key, device)
    y = depthwise.forward(x, weight, bias, geometry, "hardswish")
    depthwise.backward(y, x, weight, bias, geometry, "hardswish", [True] * 3)


def _arguments(key: Key, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Geometry]:
    """A clip of many tokens, as in the first stages; its rows leave strips that are not full."""
    options: dict[str, Any] = {"dtype": _DTYPES[key.bits], "device": device}
    layout = torch.channels_last_3d if key.channels else torch.contiguous_format
    channels = key.channels or 32
    x = torch.empty((4, channels, 8, 54, 56), **options, memory_format=layout).zero_()
    weight = torch.zeros((channels, 1, key.taps, key.taps, key.taps), **options)
    half = key.taps // 2
    geometry = Geometry(
        (key.taps,) * 3, (1, key.stride, key.stride), (half,) * 3, (1, 1, 1), "replicate"
    )
    return x, weight, torch.zeros(channels, **options), geometry


def main() -> int:
    """Finds the tiles, prints or writes them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--write", action="store_true", help="write triton_tiles.json")
    parser.add_argument("--by-registers", action="store_true", help="compile instead of measuring")
    arguments = parser.parse_args()
    if arguments.by_registers:
        how = f"No line was measured. Largest tiles within {REGISTERS} registers and without stack"
        wanted = keys(ARCHITECTURES)
        compiled = list(dict.fromkeys(map(_alike, wanted)))
        with ProcessPoolExecutor() as pool:
            found = dict(zip(compiled, pool.map(by_registers, compiled), strict=True))
        tiles = {str(key): _scaled(found[_alike(key)], max(key.channels, 1)) for key in wanted}
        note = f"{how}, by Triton {triton.__version__}."
    elif not torch.cuda.is_available():
        print("triton_tiles.py: torch sees no CUDA device to measure on")
        return 2
    else:
        before = json.loads(TABLE.read_text())
        major, minor = torch.cuda.get_device_capability()
        number = 10 * major + minor
        tiles = {name: Tile(*size) for name, size in before["tiles"].items()}
        tiles |= {str(key): measured(key) for key in keys((number,))}
        note = f"{before['found']} sm_{number} measured on {torch.cuda.get_device_name()}."
    lines = [f"    {json.dumps(name)}: {json.dumps(size)}" for name, size in tiles.items()]
    text = f'{{\n  "found": {json.dumps(note)},\n  "tiles": {{\n' + ",\n".join(lines) + "\n  }\n}\n"
    if arguments.write:
        TABLE.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
