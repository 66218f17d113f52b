"""Scenes for `MotionClips`: one thing that moves before a wall, rendered without any label.

A scene is rendered at phases 0, 1, 2 and so on, one frame each. Where it begins is as likely
anywhere on its cycle, so that a frame by itself does not tell its phase. A label then only says in
which order the frames are shown.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["PICTURES", "Renderer"]

Image = NDArray[np.uint8]

#: What a scene can show.
PICTURES = ("curtain", "blind", "wheel", "tunnel", "door")

_SLIDE = 1 / 24  # of the side, per phase: 2 pixels at 48
_ZOOM, _ZOOM_PERIOD = 1.2, 5.0
_SPOKES = 3
_TEXTURES, _MOST_CLUTTER, _NOISE, _NOISES = 48, 3, 4.0, 4096


class Renderer:
    """Renders scenes of one picture; draws its textures from ``generator``.

    ``picture`` is one of `PICTURES`, ``frames`` the number of phases, ``size`` the side of a frame
    in pixels.
    """

    def __init__(
        self, picture: str, frames: int, size: int, generator: np.random.Generator
    ) -> None:
        self._frames, self._size = frames, size
        self._draw: Callable[[Image, np.random.Generator], None] = getattr(self, f"_{picture}")
        spectrum = _SPECTRA[picture](*_frequencies(size))
        self._movers = [_texture(spectrum, generator) for _ in range(_TEXTURES)]
        natural = _natural(*_frequencies(size))
        self._walls = [_texture(natural, generator) for _ in range(_TEXTURES)]
        noise = generator.normal(0, _NOISE, size * size * 3 + _NOISES)
        self._noise = np.clip(np.rint(noise), -40, 40).astype(np.int16)

    def scene(self, generator: np.random.Generator) -> Image:
        """One scene, uint8 (T, H, W, 3): the frame of every phase in turn."""
        size = self._size
        canvas = np.empty((self._frames, size, size, 3), dtype=np.uint8)
        canvas[:] = self._window(self._walls, generator, size, size)
        margin = max(1, size // 24)
        top, left = (int(n) for n in generator.integers(0, 2 * margin + 1, 2))
        side = size - 2 * margin
        self._draw(canvas[:, top : top + side, left : left + side], generator)
        self._clutter(canvas, generator)
        return self._noisy(canvas, generator)

    def _curtain(self, place: Image, generator: np.random.Generator) -> None:
        """Folded cloth that slides to the right."""
        texture = self._one(self._movers, generator)
        top, left = generator.integers(0, self._size, 2)
        shift = max(1, round(self._size * _SLIDE)) * np.arange(self._frames)[:, None]
        y = (top + np.arange(place.shape[1])) % self._size
        x = (left + np.arange(place.shape[2]) - shift) % self._size
        place[:] = texture[y[None, :, None], x[:, None, :]]

    def _blind(self, place: Image, generator: np.random.Generator) -> None:
        """Slats that slide down: a curtain lying on its side."""
        self._curtain(place.swapaxes(1, 2), generator)

    def _wheel(self, place: Image, generator: np.random.Generator) -> None:
        """A wheel that turns, either way; all phases together are one period of its spokes."""
        sense = 1 if generator.random() < 0.5 else -1
        self._disc(place, generator, spokes=_SPOKES, turn=sense / self._frames)

    def _tunnel(self, place: Image, generator: np.random.Generator) -> None:
        """Rings that grow out of the middle without end."""
        self._disc(place, generator, spokes=1, zoom=_ZOOM)

    def _disc(
        self,
        place: Image,
        generator: np.random.Generator,
        *,
        spokes: int,
        turn: float = 0.0,
        zoom: float = 1.0,
    ) -> None:
        """A texture whose rows are rings and whose columns are sectors, `spokes` times around.

        From one phase to the next it turns by a part of its period, and grows by a factor.
        """
        texture = self._one(self._movers, generator)
        middle = np.arange(len(place[0])) - (len(place[0]) - 1) / 2
        radius = np.maximum(np.hypot(middle[:, None], middle), 0.5)
        angle = np.arctan2(middle[:, None], middle) / (2 * np.pi)
        phases = np.arange(self._frames)[:, None, None]
        # In periods of the texture; that starts are real numbers makes all phases equally likely.
        start = generator.random(2)
        depth = (np.log(radius) - np.log(zoom) * phases) / np.log(_ZOOM_PERIOD) + start[0]
        around = angle * spokes - turn * phases + start[1]
        picture = texture[self._positions(depth), self._positions(around)]
        inside = radius <= len(middle) / 2
        place[:, inside] = picture[:, inside]

    def _door(self, place: Image, generator: np.random.Generator) -> None:
        """Two leaves that part; fully open, the door is shut at once, so it has no first phase."""
        height, width = place.shape[1:3]
        half = width // 2
        place[:, :, : 2 * half] = self._window(self._walls, generator, height, 2 * half)
        leaves = self._window(self._movers, generator, height, 2 * half)
        start = generator.random()
        for phase, frame in enumerate(place):
            gap = int((start + phase / self._frames) % 1 * half)
            frame[:, : half - gap] = leaves[:, gap:half]
            frame[:, half + gap : 2 * half] = leaves[:, half : 2 * half - gap]

    def _clutter(self, canvas: Image, generator: np.random.Generator) -> None:
        """Small textured things in front of everything, the same in all frames."""
        largest = max(2, self._size // 9)
        for _ in range(int(generator.integers(_MOST_CLUTTER + 1))):
            height, width = (int(n) for n in generator.integers(2, largest + 1, 2))
            top = int(generator.integers(0, self._size - height + 1))
            left = int(generator.integers(0, self._size - width + 1))
            canvas[:, top : top + height, left : left + width] = self._window(
                self._walls, generator, height, width
            )

    def _noisy(self, canvas: Image, generator: np.random.Generator) -> Image:
        """Every frame with noise of its own, which says nothing of its phase."""
        starts = generator.integers(0, _NOISES, len(canvas))
        each = canvas[0].size
        noise = np.stack([self._noise[start : start + each] for start in starts])
        noise = noise.reshape(canvas.shape) + canvas
        return np.clip(noise, 0, 255, out=noise).astype(np.uint8)

    def _positions(self, periods: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.floor(periods * self._size).astype(np.int64) % self._size

    def _one(self, textures: list[Image], generator: np.random.Generator) -> Image:
        return textures[int(generator.integers(_TEXTURES))]

    def _window(
        self, textures: list[Image], generator: np.random.Generator, height: int, width: int
    ) -> Image:
        """A view on a random texture at a random place."""
        texture = self._one(textures, generator)
        top, left = generator.integers(0, self._size, 2)
        rows, columns = np.arange(top, top + height), np.arange(left, left + width)
        window: Image = texture[np.ix_(rows % self._size, columns % self._size)]
        return window


def _frequencies(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cycles per side along rows and columns, of `numpy.fft.rfft2`."""
    rows, columns = np.fft.fftfreq(size, 1 / size), np.fft.rfftfreq(size, 1 / size)
    return rows.astype(np.float64)[:, None], columns.astype(np.float64)[None]


# Amplitudes by cycles per side, along rows and columns. What moves has few slow waves, whose
# movement could not be seen, and few fast ones, that would seem to run backwards.


def _natural(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """The falling spectrum of natural images (Field, 1987)."""
    return np.maximum(np.hypot(rows, columns), 1) ** -1.2


def _folds(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same from 3 cycles on, three times as long as it is wide."""
    return np.where(columns < 3, 0, _natural(3 * rows, columns))


def _spokes(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mostly one cycle per spoke, which changes slowly with the radius."""
    return np.where(columns < 1, 0, np.maximum(columns, 1) ** -3.0) / (1 + rows**2)


def _rings(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mostly one ring per period, which changes slowly with the angle."""
    return np.where(rows == 0, 0, np.maximum(np.abs(rows), 1) ** -1.5) / (1 + columns**2)


_SPECTRA = {
    "curtain": _folds,
    "blind": _folds,
    "wheel": _spokes,
    "tunnel": _rings,
    "door": _folds,
}


def _texture(spectrum: NDArray[np.float64], generator: np.random.Generator) -> Image:
    """A periodic colour texture, (size, size, 3), with the amplitudes of a spectrum."""
    size = len(spectrum)
    waves = np.fft.rfft2(generator.normal(size=(3, size, size))) * spectrum
    waves[:, 0, 0] = 0
    planes = np.fft.irfft2(waves, s=(size, size))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    # One plane is common to all colours, which so are alike, as in photographs.
    mix = generator.normal(0, 0.35, (3, 3))
    mix[:, 0] += 1
    colors = np.einsum("cd,dhw->hwc", mix, planes)
    colors *= generator.uniform(35, 55) / colors.std()
    texture: Image = np.clip(generator.uniform(80, 175, 3) + colors, 0, 255).astype(np.uint8)
    return texture
