"""depthwise_conv3d as Triton kernels, for GPU machines without a CUDA compiler.

Any strides are read and written as they are. The kernels are in triton_kernels.py and, for
gradients, triton_gradient_kernels.py; the sizes of their tiles in triton_tiles.py. How sums are
split depends on shapes alone, where a shape has one tile.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from evit_kernels import _layout, _triton
from evit_kernels.depthwise_conv3d import triton_gradient_kernels as gradients
from evit_kernels.depthwise_conv3d import triton_kernels as kernels
from evit_kernels.depthwise_conv3d.geometry import Geometry
from evit_kernels.depthwise_conv3d.triton_tiles import REGISTERS, STRIP, Tile, tile

SPLITS = 64  # of the weight gradient's sum, at most about so many


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
) -> Tensor:
    """Returns the convolution of `input`, in its memory format."""
    size = (*input.shape[:2], *geometry.output_size(input.shape[2:]))
    output = torch.empty(
        size, dtype=input.dtype, device=input.device, memory_format=_layout.format_of(input)
    )
    if output.numel():
        with _triton.on_device(input):
            _convolve(input, _rows(weight, input), bias, None, output, geometry, activation)
    return output


def backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of input, weight and bias; those not needed are empty."""
    grad_input = _layout.empty_like_format(input) if needed[0] else input.new_empty(0)
    grad_weight = weight.new_empty(weight.shape) if needed[1] else input.new_empty(0)
    grad_bias = weight.new_empty(weight.shape[0]) if needed[2] else input.new_empty(0)
    grads = (grad_input, grad_weight, grad_bias)
    if grad_output.numel() == 0:
        return grad_input.zero_(), grad_weight.zero_(), grad_bias.zero_()
    if not any(needed):
        return grads
    with _triton.on_device(input):
        rows = _rows(weight, input)
        grad = grad_output
        if activation != "none":
            # Derivative of the activation times the gradient; its input is recomputed, never kept.
            grad = torch.empty(
                grad.shape,
                dtype=grad.dtype,
                device=grad.device,
                memory_format=_layout.format_of(input),
            )
            _convolve(input, rows, bias, grad_output, grad, geometry, activation)
        if needed[0]:
            _differentiate(grad, rows, grad_input, geometry)
        if needed[1] or needed[2]:
            _weigh(input, grad, grad_weight, grad_bias, geometry, needed)
    return grads


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor | None,
    y: Tensor,
    geometry: Geometry,
    activation: str,
) -> None:
    """Writes the activated convolution; with a gradient, that times the activation's derivative."""
    chosen = tile("forward", y, geometry)
    tiles = triton.cdiv(triton.cdiv(y.shape[3], STRIP) * y.shape[4], chosen.positions)
    frames_before = geometry.time_padding[0]
    kernels.convolve[(_slabs(y, chosen) * tiles * y.shape[2] * y.shape[0],)](
        *(x, *x.stride(), weight, *_taps(weight), weight if bias is None else bias.contiguous()),
        *(y if grad is None else grad, *(y if grad is None else grad).stride(), y, *y.stride()),
        *(x.shape[1], *x.shape[2:], *y.shape[2:], frames_before, *geometry.padding[1:], tiles),
        **_window(geometry),
        **_rows_of_a_strip(geometry.kernel[1], geometry.stride[1], geometry.dilation[1]),
        LOW=0,
        FRAMES=1,
        CLAMP=geometry.clamps_time,
        TRANSPOSED=False,
        ACTIVATION=activation,
        BIAS=bias is not None,
        SLOPE=grad is not None,
        **_options(chosen),
    )


def _differentiate(grad: Tensor, weight: Tensor, dx: Tensor, geometry: Geometry) -> None:
    """Writes the data gradient."""
    before = geometry.time_padding[0]
    low, high = _repeated(dx.shape[2], grad.shape[2], geometry)
    frames = {"LOW": low, "FRAMES": 1 + low + high, "CLAMP": geometry.clamps_time}
    _, kh, kw = geometry.kernel
    if geometry.stride[1:] != (1, 1):
        chosen = tile("scatter", dx, geometry)
        classes = (geometry.stride[1], geometry.stride[2])
        pixels = triton.cdiv(dx.shape[3], classes[0]) * triton.cdiv(dx.shape[4], classes[1])
        tiles = triton.cdiv(pixels, chosen.positions)
        programs = _slabs(dx, chosen) * tiles * classes[0] * classes[1] * dx.shape[2] * dx.shape[0]
        gradients.scatter[(programs,)](
            *(grad, *grad.stride(), weight, *_taps(weight), dx, *dx.stride()),
            *(dx.shape[1], *dx.shape[2:], *grad.shape[2:], before, *geometry.padding[1:], tiles),
            **_window(geometry),
            **frames,
            **_options(chosen),
        )
        return
    # The forward kernel with rows and columns of the weights reversed.
    reversed_weight = weight.flip(1, 2)
    chosen = tile("forward", dx, geometry)
    tiles = triton.cdiv(triton.cdiv(dx.shape[3], STRIP) * dx.shape[4], chosen.positions)
    above = (kh - 1) * geometry.dilation[1] - geometry.padding[1]
    left = (kw - 1) * geometry.dilation[2] - geometry.padding[2]
    kernels.convolve[(_slabs(dx, chosen) * tiles * dx.shape[2] * dx.shape[0],)](
        *(grad, *grad.stride(), reversed_weight, *_taps(reversed_weight), weight),
        *(dx, *dx.stride(), dx, *dx.stride()),
        *(dx.shape[1], *grad.shape[2:], *dx.shape[2:], before, above, left, tiles),
        **_window(geometry),
        **_rows_of_a_strip(kh, 1, geometry.dilation[1]),
        **frames,
        TRANSPOSED=True,
        ACTIVATION="none",
        BIAS=False,
        SLOPE=False,
        **_options(chosen),
    )


def _weigh(
    x: Tensor,
    grad: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    geometry: Geometry,
    needed: list[bool],
) -> None:
    """Writes the gradients of weight and bias: sums over splits, then the sum of those."""
    chosen = tile("weight", grad, geometry)
    batch, channels, frames, rows, columns = grad.shape
    positions = batch * frames * triton.cdiv(rows, STRIP) * columns
    # Twice the length, not twice the number, where there is more to add: partial sums are traffic.
    steps = triton.next_power_of_2(triton.cdiv(positions, chosen.positions * SPLITS))
    splits = triton.cdiv(positions, chosen.positions * steps)
    kt, kh, kw = geometry.kernel
    taps = kt * kh * kw
    partials = grad.new_empty((splits, taps + 1, channels), dtype=torch.float32)
    gradients.weigh[(kw * kt * _slabs(grad, chosen) * splits,)](
        *(x, *x.stride(), grad, *grad.stride(), partials, channels, *x.shape[2:], *grad.shape[2:]),
        *(geometry.time_padding[0], *geometry.padding[1:], positions),
        **_window(geometry),
        **_rows_of_a_strip(kh, geometry.stride[1], geometry.dilation[1]),
        CLAMP=geometry.clamps_time,
        UNEVEN=rows % STRIP != 0,
        STEPS=steps,
        **_options(chosen),
    )
    programs = triton.cdiv((taps + 1) * channels, _triton.ENTRIES)
    gradients.add_splits[(programs,)](
        *(partials, grad_weight, grad_bias, channels, splits),
        TAPS=taps,
        WEIGHT=needed[1],
        BIAS=needed[2],
        BLOCK=_triton.ENTRIES,
    )


def _rows(weight: Tensor, like: Tensor) -> Tensor:
    """Returns the weights as (k_t, k_h, k_w, C), channels next to each other where they so are."""
    rows = weight[:, 0].permute(1, 2, 3, 0)
    return rows.contiguous() if _layout.is_channels_last(like) else rows


def _taps(weight: Tensor) -> tuple[int, ...]:
    return weight.stride()


def _slabs(x: Tensor, chosen: Tile) -> int:
    number: int = triton.cdiv(x.shape[1], chosen.channels)
    return number


def _options(chosen: Tile) -> dict[str, Any]:
    return {
        "POSITIONS": chosen.positions,
        "CHANNELS": chosen.channels,
        "num_warps": chosen.warps,
        # Left alone, the assembler spills a few bytes where that makes room for another block.
        "maxnreg": REGISTERS,
    }


def _window(geometry: Geometry) -> dict[str, int]:
    names = ("KT", "KH", "KW", "ST", "SH", "SW", "DT", "DH", "DW")
    values = (*geometry.kernel, *geometry.stride, *geometry.dilation)
    return dict(zip(names, values, strict=True))


def _rows_of_a_strip(kernel: int, stride: int, dilation: int) -> dict[str, int]:
    """Which input rows a strip needs, as bits from its first one, and how many rows that spans."""
    rows = {s * stride + k * dilation for s in range(STRIP) for k in range(kernel)}
    return {"ROWS": sum(1 << row for row in rows), "SPAN": max(rows) + 1}


def _repeated(frames: int, outputs: int, geometry: Geometry) -> tuple[int, int]:
    """Returns how many output frames, at most, read the first and the last one repeated."""
    if not geometry.clamps_time:
        return 0, 0
    before = geometry.time_padding[0]
    (kt, _, _), (st, _, _), (dt, _, _) = geometry.kernel, geometry.stride, geometry.dilation
    low = -(-before // st)
    last_inside = (frames - 1 + before - (kt - 1) * dt) // st
    return min(low, outputs), min(max(outputs - 1 - last_inside, 0), outputs)
