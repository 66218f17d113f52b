"""The depthwise convolution written out tap by tap in numpy's longest float.

Independent of PyTorch's convolution, and with more digits than float64: what float64 results are
measured against.
"""

from __future__ import annotations

import numpy as np
import torch
from depthwise_cases import Case
from torch import Tensor

_Array = np.ndarray


class Definition:
    """One call without activation: its output and the gradients of its arguments, in float64."""

    def __init__(self, case: Case, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        assert case.activation is None
        self._case = case
        self._input = _long(input)
        self._weight = _long(weight)
        self._bias = None if bias is None else _long(bias)
        self._frames, self._out = _frames_and_size(case)

    def output(self) -> Tensor:
        """Sums weight times padded input over the taps."""
        padded = self._padded(self._input)
        total = np.zeros((*self._input.shape[:2], *self._out), dtype=np.longdouble)
        for tap, window in self._taps():
            total += self._weight[:, 0][(slice(None), *tap)][:, None, None, None] * padded[window]
        if self._bias is not None:
            total += self._bias[:, None, None, None]
        return _double(total)

    def gradients(self, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of input, weight and bias."""
        grad = _long(grad_output)
        padded = self._padded(self._input)
        grad_padded = np.zeros_like(padded)
        grad_weight = np.zeros_like(self._weight)
        for tap, window in self._taps():
            weight = self._weight[:, 0][(slice(None), *tap)][:, None, None, None]
            grad_padded[window] += weight * grad
            grad_weight[:, 0][(slice(None), *tap)] = (padded[window] * grad).sum((0, 2, 3, 4))
        grad_input = np.zeros_like(self._input)
        _, ph, pw = self._case.padding
        _, h, w = self._case.size
        for position, frame in enumerate(self._frames):
            if frame is not None:
                grad_input[:, :, frame] += grad_padded[:, :, position, ph : ph + h, pw : pw + w]
        return _double(grad_input), _double(grad_weight), _double(grad.sum((0, 2, 3, 4)))

    def _padded(self, x: _Array) -> _Array:
        _, ph, pw = self._case.padding
        wide = np.pad(x, ((0, 0), (0, 0), (0, 0), (ph, ph), (pw, pw)))
        nothing = np.zeros_like(wide[:, :, 0])
        frames = [nothing if f is None else wide[:, :, f] for f in self._frames]
        return np.stack(frames, axis=2)

    def _taps(self) -> list[tuple[tuple[int, int, int], tuple[slice, ...]]]:
        case = self._case
        taps = []
        for tap in np.ndindex(*case.kernel):
            starts = [k * d for k, d in zip(tap, case.dilation, strict=True)]
            window = [
                slice(start, start + (size - 1) * stride + 1, stride)
                for start, size, stride in zip(starts, self._out, case.stride, strict=True)
            ]
            taps.append((tap, (slice(None), slice(None), *window)))
        return taps


def _frames_and_size(case: Case) -> tuple[list[int | None], list[int]]:
    """The frame at each place of the padded clip (None: zeros), and the output's size."""
    before = after = case.padding[0]
    if case.temporal_padding == "causal":
        before, after = (case.kernel[0] - 1) * case.dilation[0], 0
    last = case.size[0] - 1
    frames: list[int | None] = [min(max(t, 0), last) for t in range(-before, last + 1 + after)]
    if case.temporal_padding == "zeros":
        frames = [None if t < 0 or t > last else t for t in range(-before, last + 1 + after)]
    padded = [len(frames), *(case.size[i] + 2 * case.padding[i] for i in (1, 2))]
    out = [
        (padded[i] - case.dilation[i] * (case.kernel[i] - 1) - 1) // case.stride[i] + 1
        for i in range(3)
    ]
    return frames, out


def _long(x: Tensor) -> _Array:
    return x.detach().double().cpu().numpy().astype(np.longdouble)


def _double(x: _Array) -> Tensor:
    return torch.from_numpy(x.astype(np.float64))
