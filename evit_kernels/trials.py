"""Trials: what was never measured on a kind of device has to give the right answer there first.

Where `backends.ORDERS` knows nothing but the floor, a fused backend comes first all the same. Its
kernels may never have run on such a device, so the first call that would be served by them has them
compute something small, forward and backward, beside the reference in float64. Those that fail are
passed over, with a warning that says what happened.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

# Of the largest element, for sums of some hundred terms. Units in the last place would be too
# strict for them, and what goes wrong in a kernel is wrong by much more than this.
TOLERANCES: dict[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}

# Computes an output from inputs with one backend; a case is the shapes of such inputs, and a call.
Call = Callable[[list[Tensor], str], Tensor]
Case = tuple[Sequence[tuple[int, ...]], Call]


def passed(operator: str, backend: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Tells whether a backend computes an operator rightly on a device, which is tried once.

    Not tried, and not remembered, while a CUDA graph is being captured: answers have to be read.
    """
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return False
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
    return failure(operator, backend, device, dtype) is None


@cache
def failure(operator: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns what went wrong in a trial, warning of it the first time, or None if nothing did."""
    # A thread of its own has none of the caller's autocast, modes, transforms and streams.
    with ThreadPoolExecutor(max_workers=1) as pool:
        reason = pool.submit(_outcome, operator, backend, device, dtype).result()
    if reason is not None:
        warnings.warn(
            f"{operator}: backend {backend!r} does not serve {dtype} on {device} by default: in a "
            f"trial {reason} (please report this; EVIT_BACKEND=reference avoids every kernel)",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


def _outcome(operator: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        for shapes, call in _cases(operator):
            for memory_format in (torch.channels_last_3d, torch.contiguous_format):
                inputs = [_numbers(shape, device).to(dtype) for shape in shapes]
                inputs = [
                    x.contiguous(memory_format=memory_format) if x.dim() == 5 else x for x in inputs
                ]
                exact = _results(call, [x.double() for x in inputs], "reference", dtype)
                found = _results(call, inputs, backend, dtype)
                for name, result, truth in zip(_names(len(inputs)), found, exact, strict=True):
                    error = float((result.double() - truth).abs().max() / truth.abs().max())
                    if not error <= TOLERANCES[dtype]:  # NaN is as wrong as can be
                        return f"its {name} was off by {error:.1e} of the largest element"
    except Exception as error:  # whatever a kernel, a compiler or a driver may raise
        return f"it raised {type(error).__name__}: {error}"
    return None


def _results(
    call: Call, inputs: list[Tensor], backend: str, rounded_to: torch.dtype
) -> list[Tensor]:
    """Returns an output, and the gradients of all inputs for one gradient of the output."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = call(leaves, backend)
    grad = _numbers(tuple(output.shape), output.device).to(rounded_to).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def _names(inputs: int) -> Iterator[str]:
    yield "output"
    for position in range(inputs):
        yield f"gradient of input {position}"


def _numbers(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers between -1 and 1 that repeat nowhere, and leave everybody's random numbers alone."""
    count = torch.Size(shape).numel()
    steps = torch.arange(1, count + 1, dtype=torch.float64, device=device)
    return (steps * steps * 0.6180339887).frac().mul(2).sub(1).reshape(shape)


def _cases(operator: str) -> list[Case]:
    # Imported here: the operators choose their backends by this.
    from evit_kernels.depthwise_conv3d import depthwise_conv3d
    from evit_kernels.relu_linear_attention import relu_linear_attention_qkv

    def convolved(inputs: list[Tensor], backend: str) -> Tensor:
        x, weight, bias = inputs
        return depthwise_conv3d(x, weight, bias, padding=1, activation="hardswish", backend=backend)

    def halved(inputs: list[Tensor], backend: str) -> Tensor:
        x, weight, bias = inputs
        return depthwise_conv3d(
            x, weight, bias, (1, 2, 2), 1, temporal_padding="replicate", backend=backend
        )

    def attended(inputs: list[Tensor], backend: str) -> Tensor:
        # A large eps: how far a normaliser near zero is off says nothing about a kernel.
        return relu_linear_attention_qkv(inputs, 16, eps=1.0, backend=backend)

    window = [(2, 16, 4, 9, 10), (16, 1, 3, 3, 3), (16,)]
    scales = [(2, 96, 2, 9, 10), (2, 48, 2, 9, 10)]
    cases: dict[str, list[Case]] = {
        "depthwise_conv3d": [(window, convolved), (window, halved)],
        "relu_linear_attention": [(scales, attended)],
    }
    return cases[operator]
