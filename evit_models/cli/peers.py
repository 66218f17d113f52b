"""Who is compared in `evit bench`: ours first, then PyTorch in its two memory layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evit_kernels import (
    batch_norm_activation,
    depthwise_conv3d,
    pointwise_conv3d,
    pointwise_depthwise_conv3d,
    relu_linear_attention_qkv,
)
from evit_models.cli.common import UserError, random_model
from evit_models.cli.cuda import captured
from evit_models.registry import prefer_backend, set_backend

Shape = tuple[int, int, int, int, int]
Peers = dict[str, Callable[[], object]]

_OURS, _DEFAULT, _LAST = "ours (channels_last_3d)", "PyTorch NCDHW", "PyTorch channels_last_3d"
_OURS_NCDHW = "ours (NCDHW)"
_LAYOUTS = {
    _OURS: torch.channels_last_3d,
    _OURS_NCDHW: torch.contiguous_format,
    _DEFAULT: torch.contiguous_format,
    _LAST: torch.channels_last_3d,
}


def model_peers(
    name: str,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    backend: str | None,
    *,
    backward: bool,
    mode: str = "eager",
) -> Peers:
    """The model with our operators, and with PyTorch's in both layouts; same weights, same clip.

    A backend of ours serves where it can; on GPUs none but the reference serves all operators.
    """
    clip = torch.randn(shape, dtype=dtype, device=device)
    ours = random_model(name)
    peers: Peers = {}
    for label in (_OURS, _DEFAULT, _LAST):
        layout = _LAYOUTS[label]
        model = random_model(name, backend="reference")
        if label == _OURS:
            set_backend(model, None)
            if backend is not None:
                prefer_backend(model, backend, device)
        model.load_state_dict(ours.state_dict())
        model.to(device, dtype).train(backward)
        for parameter in model.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        if label == _DEFAULT:
            # The model turns its input to channels-last; this peer must stay as it is.
            model._prepare = lambda x: x  # type: ignore[method-assign]
        function: Operator = torch.compile(model) if mode == "compile" else model
        call = _call_of(function, clip.contiguous(memory_format=layout), backward=backward)
        call = _backward_of(call, list(model.parameters())) if backward else call
        peers[label] = captured(call, device) if mode == "graph" else call
    return peers


def operator_peers(
    name: str,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    backend: str | None,
    *,
    kernel: int,
    head_dim: int,
    backward: bool,
    mode: str = "eager",
    layout: str = "channels_last",
) -> Peers:
    """One operator with the activation that the B models put after it, against plain PyTorch.

    Backward passes give the gradients of the input and of all weights. The layout is ours.
    """
    channels = shape[1]
    if name == "depthwise_conv3d":
        ours, theirs, weights = _depthwise(channels, kernel, backend)
    elif name == "relu_linear_attention_qkv":
        ours, theirs, weights = _attention(channels, head_dim, backend)
    elif name == "pointwise_conv3d":
        ours, theirs, weights = _pointwise(channels, backend)
    elif name == "pointwise_depthwise_conv3d":
        ours, theirs, weights = _pointwise_depthwise(channels, kernel, backend)
    else:
        ours, theirs, weights = _norm(channels, backend)
    x = torch.randn(shape, dtype=dtype, device=device)
    own = _OURS if layout == "channels_last" else _OURS_NCDHW
    peers: Peers = {}
    for label in (own, _DEFAULT, _LAST):
        operator = ours if label == own else theirs
        if mode == "compile":
            operator = torch.compile(operator)
        parameters = [w.to(device, dtype).requires_grad_(backward) for w in weights]
        input = x.contiguous(memory_format=_LAYOUTS[label]).detach().requires_grad_(backward)
        call = _operator_call(operator, input, parameters)
        call = _backward_of(call, [input, *parameters]) if backward else call
        peers[label] = captured(call, device) if mode == "graph" else call
    return peers


Operator = Callable[..., Tensor]


def _depthwise(
    channels: int, kernel: int, backend: str | None
) -> tuple[Operator, Operator, list[Tensor]]:
    padding = kernel // 2
    weights = [
        torch.randn(channels, 1, kernel, kernel, kernel) / kernel**1.5,
        torch.randn(channels),
    ]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv3d(
            x, weight, bias, padding=padding, activation="hardswish", backend=backend
        )

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.hardswish(F.conv3d(x, weight, bias, padding=padding, groups=channels))

    return ours, theirs, weights


def _attention(
    channels: int, head_dim: int, backend: str | None
) -> tuple[Operator, Operator, list[Tensor]]:
    if channels % (3 * head_dim):
        raise UserError(
            f"--channels: {channels} is no multiple of 3 x {head_dim} (q, k and v of a head)"
        )

    def ours(x: Tensor) -> Tensor:
        return relu_linear_attention_qkv(x, head_dim, backend=backend)

    def theirs(x: Tensor) -> Tensor:
        batch, _, *space = x.shape
        heads = x.float().reshape(batch, -1, 3, head_dim, x[0, 0].numel())
        q, k, v = heads[:, :, 0].relu(), heads[:, :, 1].relu(), heads[:, :, 2]
        # A row of ones under v gives the normaliser in the same product.
        state = F.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(-1, -2)
        both = state @ q
        out = both[:, :, :-1] / (both[:, :, -1:] + 1e-15)
        return out.to(x.dtype).reshape(batch, -1, *space)

    return ours, theirs, []


def _pointwise(channels: int, backend: str | None) -> tuple[Operator, Operator, list[Tensor]]:
    weights = [torch.randn(channels, channels, 1, 1, 1) / channels**0.5, torch.randn(channels)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return pointwise_conv3d(x, weight, bias, activation="hardswish", backend=backend)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.hardswish(F.conv3d(x, weight, bias))

    return ours, theirs, weights


def _pointwise_depthwise(
    channels: int, kernel: int, backend: str | None
) -> tuple[Operator, Operator, list[Tensor]]:
    """A whole inverted bottleneck, with four times the channels inside, as in most networks."""
    padding, wide = kernel // 2, 4 * channels
    weights = [
        torch.randn(wide, channels, 1, 1, 1) / channels**0.5,
        torch.randn(wide),
        torch.randn(wide, 1, kernel, kernel, kernel) / kernel**1.5,
        torch.randn(wide),
        torch.randn(channels, wide, 1, 1, 1) / wide**0.5,
        torch.randn(channels),
    ]

    def ours(x: Tensor, *tensors: Tensor) -> Tensor:
        first, shift, weight, bias, last, last_bias = tensors
        return pointwise_depthwise_conv3d(
            x,
            first,
            shift,
            weight,
            bias,
            padding=padding,
            pointwise_activation="hardswish",
            activation="hardswish",
            project_weight=last,
            project_bias=last_bias,
            residual=x,
            backend=backend,
        )

    def theirs(x: Tensor, *tensors: Tensor) -> Tensor:
        first, shift, weight, bias, last, last_bias = tensors
        y = F.hardswish(F.conv3d(x, first, shift))
        y = F.hardswish(F.conv3d(y, weight, bias, padding=padding, groups=wide))
        return F.conv3d(y, last, last_bias) + x

    return ours, theirs, weights


def _norm(channels: int, backend: str | None) -> tuple[Operator, Operator, list[Tensor]]:
    weights = [torch.rand(channels) + 0.5, torch.randn(channels)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm_activation(
            x, weight, bias, None, None, training=True, activation="hardswish", backend=backend
        )

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.hardswish(F.batch_norm(x, None, None, weight, bias, training=True))

    return ours, theirs, weights


def _call_of(model: Operator, clip: Tensor, *, backward: bool) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode(not backward):
            return model(clip)

    return call


def _operator_call(
    operator: Operator, input: Tensor, parameters: list[Tensor]
) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode(not input.requires_grad):
            return operator(input, *parameters)

    return call


def _backward_of(call: Callable[[], Any], wanted: list[Tensor]) -> Callable[[], Any]:
    gradient: list[Tensor] = []

    def both() -> Any:
        output = call()
        if not gradient:
            gradient.append(torch.randn_like(output))
        return torch.autograd.grad(output, wanted, gradient[0])

    return both
