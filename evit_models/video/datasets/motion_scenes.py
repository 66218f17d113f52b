"""Scenes for `MotionClips`: a cluttered wall of little machines, rendered without any label.

A machine has a phase, 0 to frames - 1. In the bag of frames that a scene is rendered to, every
machine takes each of its phases once, in a random order of its own. A label then only says in which
order the frames are shown: by the phase of one machine, which runs while the others tremble.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MACHINES", "Renderer"]

Image = NDArray[np.uint8]

# Measures as shares of the side of the frame, or of a machine's period; at 64 pixels a belt moves
# 2 pixels from one phase to the next.
_BELT_STEP = 1 / 32
_ZOOM_STEP = 1.22
_ZOOM_PERIOD = 6.0
_WHEEL_SECTORS = 3
_TEXTURES, _MOST_CLUTTER, _NOISE = 24, 5, 5.0


class Renderer:
    """Renders scenes of some machines; its textures are drawn once, from ``generator``.

    ``frames`` is the number of frames and of phases, ``size`` the side of a frame in pixels.
    """

    def __init__(
        self, machines: tuple[str, ...], frames: int, size: int, generator: np.random.Generator
    ) -> None:
        self.machines = machines
        self._frames, self._size = frames, size
        textures = [_texture(size, generator) for _ in range(_TEXTURES)]
        # Twice in each direction: a window that leaves the first copy is in the second.
        self._textures = [np.tile(texture, (2, 2, 1)) for texture in textures]
        length = frames * size * size * 3
        noise = generator.normal(0, _NOISE, length + 4096)
        self._noise = np.clip(np.rint(noise), -40, 40).astype(np.int16)
        self._rows, self._columns = _grid(len(machines))
        margin = max(1, size // 32)
        self._cell = (size // self._rows, size // self._columns)
        self._patch = (self._cell[0] - 2 * margin, self._cell[1] - 2 * margin)
        self._polar = _Polar(min(self._patch), size)

    def bag(self, generator: np.random.Generator) -> tuple[Image, NDArray[np.int64]]:
        """One scene: frames uint8 (T, H, W, 3) in no order, and phases int64 (machines, T)."""
        frames = self._frames
        phases = self._phases(generator)
        canvas = np.empty((frames, self._size, self._size, 3), dtype=np.uint8)
        canvas[:] = self._window(generator, self._size, self._size)
        cells = generator.permutation(self._rows * self._columns)
        for machine, order, cell in zip(self.machines, phases, cells, strict=False):
            patch, mask = MACHINES[machine](self, generator)
            height, width = patch.shape[1:3]
            row, column = divmod(int(cell), self._columns)
            top = row * self._cell[0] + _jitter(generator, self._cell[0] - height)
            left = column * self._cell[1] + _jitter(generator, self._cell[1] - width)
            place = canvas[:, top : top + height, left : left + width]
            if mask is None:
                place[:] = patch[order]
            else:
                place[:, mask] = patch[order][:, mask]
        self._clutter(canvas, generator)
        start = int(generator.integers(4096))
        noisy = self._noise[start : start + canvas.size].reshape(canvas.shape) + canvas
        return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8), phases

    def _phases(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """The phases of every machine in every frame of a bag, (machines, T).

        Any two machines are so unlike that where one runs, the other does not, at any speed.
        """
        while True:
            phases = np.stack([generator.permutation(self._frames) for _ in self.machines])
            if not any(_run_together(*pair) for pair in combinations(phases, 2)):
                return phases

    def _window(self, generator: np.random.Generator, height: int, width: int) -> Image:
        """A view on a random texture at a random place."""
        texture = self._textures[int(generator.integers(_TEXTURES))]
        top, left = (int(n) for n in generator.integers(0, self._size, 2))
        return texture[top : top + height, left : left + width]

    def _clutter(self, canvas: Image, generator: np.random.Generator) -> None:
        """Small textured things in front of everything, the same in all frames."""
        largest = max(2, self._size // 9)
        for _ in range(int(generator.integers(1, _MOST_CLUTTER + 1))):
            height, width = (int(n) for n in generator.integers(2, largest + 1, 2))
            top = int(generator.integers(0, self._size - height + 1))
            left = int(generator.integers(0, self._size - width + 1))
            canvas[:, top : top + height, left : left + width] = self._window(
                generator, height, width
            )

    def _belt(self, generator: np.random.Generator, *, vertical: bool) -> Image:
        """A band of texture behind a window, moving right or down as its phase grows."""
        height, width = self._patch
        texture = self._textures[int(generator.integers(_TEXTURES))]
        top, left = (int(n) for n in generator.integers(0, self._size, 2))
        step = max(1, round(self._size * _BELT_STEP))
        patch = np.empty((self._frames, height, width, 3), dtype=np.uint8)
        for phase in range(self._frames):
            moved = -phase * step
            y = (top + (moved if vertical else 0)) % self._size
            x = (left + (0 if vertical else moved)) % self._size
            patch[phase] = texture[y : y + height, x : x + width]
        return patch

    def _tunnel(self, generator: np.random.Generator) -> Image:
        """A disc whose texture grows out of its middle as its phase grows, without end."""
        texture = self._textures[int(generator.integers(_TEXTURES))]
        start = generator.random() * self._size
        step = self._size * np.log(_ZOOM_STEP) / np.log(_ZOOM_PERIOD)
        shifts = np.floor(start - step * np.arange(self._frames)).astype(np.int64) % self._size
        rows = (self._polar.log_radius + shifts[:, None, None]) % self._size
        turn = int(generator.integers(self._size))
        picture: Image = texture[rows, (self._polar.angle + turn)[None] % self._size]
        return picture

    def _wheel(self, generator: np.random.Generator) -> Image:
        """A disc of equal sectors; its phases make one period of its rotation, either way."""
        texture = self._textures[int(generator.integers(_TEXTURES))]
        sense = 1 if generator.random() < 0.5 else -1
        start = generator.random() * self._size
        turns = start + sense * self._size / self._frames * np.arange(self._frames)
        shifts = np.floor(turns).astype(np.int64)
        columns = (self._polar.angle * _WHEEL_SECTORS + shifts[:, None, None]) % self._size
        row = int(generator.integers(self._size))
        picture: Image = texture[(self._polar.log_radius + row)[None] % self._size, columns]
        return picture

    def _door(self, generator: np.random.Generator) -> Image:
        """Two leaves that part as the phase grows; fully open, the door is shut at once.

        It so is as often open as shut at every phase, whatever comes first.
        """
        height, width = self._patch
        half = width // 2
        inside = self._window(generator, height, 2 * half)
        leaves = self._window(generator, height, 2 * half)
        start = generator.random()
        patch = np.empty((self._frames, height, 2 * half, 3), dtype=np.uint8)
        patch[:] = inside
        for phase in range(self._frames):
            gap = int((start + phase / self._frames) % 1 * half)
            patch[phase, :, : half - gap] = leaves[:, gap:half]
            patch[phase, :, half + gap :] = leaves[:, half : 2 * half - gap]
        return patch

    def _disc(self, patch: Image) -> tuple[Image, NDArray[np.bool_]]:
        return patch, self._polar.inside


#: What draws a machine: its picture at every phase, (T, h, w, 3), and where it is not see-through.
MACHINES: dict[
    str, Callable[[Renderer, np.random.Generator], tuple[Image, NDArray[np.bool_] | None]]
] = {
    "belt": lambda renderer, generator: (renderer._belt(generator, vertical=False), None),
    "lift": lambda renderer, generator: (renderer._belt(generator, vertical=True), None),
    "wheel": lambda renderer, generator: renderer._disc(renderer._wheel(generator)),
    "tunnel": lambda renderer, generator: renderer._disc(renderer._tunnel(generator)),
    "door": lambda renderer, generator: (renderer._door(generator), None),
}


class _Polar:
    """For every pixel of a disc, its place in a texture of rows by log radius, columns by angle."""

    def __init__(self, diameter: int, period: int) -> None:
        axis = np.arange(diameter) - (diameter - 1) / 2
        y, x = np.meshgrid(axis, axis, indexing="ij")
        radius = np.maximum(np.hypot(x, y), 0.5)
        rows = np.log(radius) / np.log(_ZOOM_PERIOD) * period
        self.log_radius = np.floor(rows).astype(np.int64) % period
        angle = (np.arctan2(y, x) / (2 * np.pi)) % 1
        self.angle = np.floor(angle * period).astype(np.int64) % period
        self.inside = radius <= diameter / 2


def _texture(size: int, generator: np.random.Generator) -> Image:
    """A periodic colour texture with the falling spectrum of natural images (Field, 1987)."""
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf  # the mean is set below
    amplitude = frequency ** -generator.uniform(1.0, 1.5)
    spectrum = np.fft.rfft2(generator.normal(size=(3, size, size))) * amplitude
    waves = np.fft.irfft2(spectrum, s=(size, size))
    waves /= waves.std(axis=(1, 2), keepdims=True)
    # Mostly one colour axis and a little of the others, as paint has it.
    mixed = np.einsum("cd,dhw->hwc", np.eye(3) * 0.5 + generator.normal(0, 0.7, (3, 3)), waves)
    mixed *= generator.uniform(35, 55) / mixed.std()
    texture: Image = np.clip(generator.uniform(70, 185, 3) + mixed, 0, 255).astype(np.uint8)
    return texture


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of the smallest grid, at most as high as wide, with this many cells."""
    rows = max(1, int(count**0.5))
    return rows, -(-count // rows)


def _run_together(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    steps = np.diff(other[np.argsort(one)]) % one.size
    return bool((steps == steps[0]).all())


def _jitter(generator: np.random.Generator, room: int) -> int:
    return int(generator.integers(0, room + 1))
