"""Scenes for `MotionClips`: cloth, a disc or a door before a wall, rendered without any label.

What can run has a phase, 0 to frames - 1. In the bag of frames that a scene is rendered to, it
takes all of its phases once, in a random order; where two run, as the two directions of cloth, each
has an order of its own. A label then only says in which order the frames are shown: by the phase of
one of them, which so runs smoothly, while the other trembles.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["RUNNERS", "Renderer"]

Image = NDArray[np.uint8]
Band = NDArray[np.float32]

#: What can run: the picture that it belongs to. Warp and weft are the two directions of a cloth.
RUNNERS = {"warp": "cloth", "weft": "cloth", "rings": "disc", "sectors": "disc", "leaves": "door"}

# At 64 pixels a cloth moves 2 pixels from one phase to the next.
_CLOTH_STEP = 1 / 32
_ZOOM_STEP, _ZOOM_PERIOD = 1.22, 6.0
_SECTORS = 3
_TEXTURES, _BANDS, _MOST_CLUTTER, _NOISE = 24, 64, 5, 5.0


class Renderer:
    """Renders scenes of one picture; draws its textures from ``generator``.

    ``runners`` are those of `RUNNERS` that run, all of one picture. ``frames`` is the number of
    frames and of phases, ``size`` the side of a frame in pixels.
    """

    def __init__(
        self, runners: tuple[str, ...], frames: int, size: int, generator: np.random.Generator
    ) -> None:
        self.runners = runners
        (self._picture,) = {RUNNERS[runner] for runner in runners}
        self._frames, self._size = frames, size
        # Twice in each direction: a window that leaves the first copy is in the second.
        self._textures = [np.tile(_texture(size, generator), (2, 2, 1)) for _ in range(_TEXTURES)]
        self._bands = [_band(size, generator) for _ in range(_BANDS)]
        noise = generator.normal(0, _NOISE, frames * size * size * 3 + 4096)
        self._noise = np.clip(np.rint(noise), -40, 40).astype(np.int16)

    def bag(self, generator: np.random.Generator) -> tuple[Image, NDArray[np.int64]]:
        """One scene: frames uint8 (T, H, W, 3) in no order, and phases int64 (runners, T)."""
        phases = self._phases(generator)
        still = np.zeros(self._frames, dtype=np.int64)
        phase_of = dict.fromkeys(RUNNERS, still) | dict(zip(self.runners, phases, strict=True))
        canvas = np.empty((self._frames, self._size, self._size, 3), dtype=np.uint8)
        canvas[:] = self._window(generator, self._size, self._size)
        draw = {"cloth": self._cloth, "disc": self._disc, "door": self._door}
        draw[self._picture](self._place(canvas, generator), phase_of, generator)
        self._clutter(canvas, generator)
        start = int(generator.integers(4096))
        noisy = self._noise[start : start + canvas.size].reshape(canvas.shape) + canvas
        return np.clip(noisy, 0, 255, out=noisy).astype(np.uint8), phases

    def _phases(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """The phases of every runner in every frame of a bag, (runners, T).

        Any two are so unlike that where one runs, the other does not, at any speed.
        """
        while True:
            phases = np.stack([generator.permutation(self._frames) for _ in self.runners])
            if not any(_run_together(*pair) for pair in combinations(phases, 2)):
                return phases

    def _place(self, canvas: Image, generator: np.random.Generator) -> Image:
        """Where the picture stands: all of the canvas but a little wall around it."""
        margin = max(1, self._size // 32)
        top, left = (int(n) for n in generator.integers(0, 2 * margin + 1, 2))
        side = self._size - 2 * margin
        return canvas[:, top : top + side, left : left + side]

    def _cloth(
        self, place: Image, phases: dict[str, NDArray[np.int64]], generator: np.random.Generator
    ) -> None:
        """Stripes across and along, woven together; they slide right and down as phases grow."""
        height, width = place.shape[1:3]
        step = max(1, round(self._size * _CLOTH_STEP))
        columns, rows = np.arange(width), np.arange(height)
        across, along = self._two_bands(generator)
        start = generator.integers(0, self._size, 2)
        x = (start[0] + columns - step * phases["warp"][:, None]) % self._size
        y = (start[1] + rows - step * phases["weft"][:, None]) % self._size
        _paint(place, across[x][:, None] + along[y][:, :, None])

    def _disc(
        self, place: Image, phases: dict[str, NDArray[np.int64]], generator: np.random.Generator
    ) -> None:
        """Rings that grow out of the middle without end, and sectors that turn, either way.

        The phases of the sectors make one period of their rotation, so that they have no first.
        """
        height, width = place.shape[1:3]
        diameter = min(height, width)
        top = int(generator.integers(0, height - diameter + 1))
        left = int(generator.integers(0, width - diameter + 1))
        axis = np.arange(diameter) - (diameter - 1) / 2
        radius = np.maximum(np.hypot(axis[:, None], axis), 0.5)
        angle = np.arctan2(axis[:, None], axis) / (2 * np.pi)
        rings, sectors = self._two_bands(generator)
        start, turn = generator.random(2)
        sense = 1 if generator.random() < 0.5 else -1
        depth = np.log(radius) / np.log(_ZOOM_PERIOD) + start
        zoom = np.log(_ZOOM_STEP) / np.log(_ZOOM_PERIOD) * phases["rings"]
        turned = angle * _SECTORS + turn
        period = sense / self._frames * phases["sectors"]
        picture = rings[self._position(depth - zoom[:, None, None])]
        picture += sectors[self._position(turned - period[:, None, None])]
        inside = radius <= diameter / 2
        square = place[:, top : top + diameter, left : left + diameter]
        painted = np.empty_like(square)
        _paint(painted, picture)
        square[:, inside] = painted[:, inside]

    def _door(
        self, place: Image, phases: dict[str, NDArray[np.int64]], generator: np.random.Generator
    ) -> None:
        """Two leaves that part as the phase grows; fully open, the door is shut at once.

        It so is as often open as shut at every phase, whatever comes first.
        """
        height, width = place.shape[1:3]
        half = width // 2
        place[:, :, : 2 * half] = self._window(generator, height, 2 * half)
        leaves = self._window(generator, height, 2 * half)
        start = generator.random()
        for frame, phase in zip(place, phases["leaves"], strict=True):
            gap = int((start + phase / self._frames) % 1 * half)
            frame[:, : half - gap] = leaves[:, gap:half]
            frame[:, half + gap : 2 * half] = leaves[:, half : 2 * half - gap]

    def _position(self, turns: NDArray[np.float64]) -> NDArray[np.int64]:
        """Where in a band of one turn."""
        return np.floor(turns * self._size).astype(np.int64) % self._size

    def _two_bands(self, generator: np.random.Generator) -> tuple[Band, Band]:
        one, other = generator.integers(_BANDS, size=2)
        return self._bands[one], self._bands[other]

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


def _paint(place: Image, colors: NDArray[np.float32]) -> None:
    np.clip(colors + 128, 0, 255, out=colors)
    place[:] = colors


def _texture(size: int, generator: np.random.Generator) -> Image:
    """A periodic colour texture with the falling spectrum of natural images (Field, 1987)."""
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf  # the mean is set below
    amplitude = frequency ** -generator.uniform(1.0, 1.5)
    spectrum = np.fft.rfft2(generator.normal(size=(3, size, size))) * amplitude
    waves = np.fft.irfft2(spectrum, s=(size, size))
    colors = _colored(waves / waves.std(axis=(1, 2), keepdims=True), generator)
    colors *= generator.uniform(30, 50) / colors.std()
    texture: Image = np.clip(generator.uniform(70, 185, 3) + colors, 0, 255).astype(np.uint8)
    return texture


def _band(size: int, generator: np.random.Generator) -> Band:
    """A periodic row of colours around 0, (size, 3), with the same falling spectrum."""
    frequency = np.fft.rfftfreq(size)
    frequency[0] = np.inf
    spectrum = np.fft.rfft(generator.normal(size=(3, size))) * frequency**-1.0
    colors = _colored(np.fft.irfft(spectrum, n=size)[:, None], generator)[0]
    band: Band = (colors * (generator.uniform(30, 45) / colors.std())).astype(np.float32)
    return band


def _colored(waves: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Three waves, (3, H, W), as colours, (H, W, 3), that are more alike than independent."""
    mixed: NDArray[np.float64] = np.einsum(
        "cd,dhw->hwc", np.eye(3) * 0.5 + generator.normal(0, 0.7, (3, 3)), waves
    )
    return mixed


def _run_together(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    steps = np.diff(other[np.argsort(one)]) % one.size
    return bool((steps == steps[0]).all())
