"""Operators on a device: its streams, its graphs, its memory, and what the compiler makes of them.

Everything runs on the CPU too, where streams and graphs are nothing (gpu.py): so the tests
themselves are known to work before there is a GPU. What they are for happens on one.
"""

from __future__ import annotations

from collections.abc import Callable

import gpu
import pytest
import torch
from device_calls import CALLS, Call, fused_calls
from placement import Placement, placements
from torch import Tensor

from evit_kernels import depthwise_conv3d, relu_linear_attention, relu_linear_attention_qkv

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
on_every_device = pytest.mark.parametrize(
    ("call", "place"), fused_calls(), ids=lambda value: str(value)
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_automatic_choice_agrees_with_float64(call: Call, device: str, dtype: torch.dtype) -> None:
    _assert_exact(call, Placement(device, "automatic"), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@on_every_device
def test_backend_agrees_with_float64(call: Call, place: Placement, dtype: torch.dtype) -> None:
    _assert_exact(call, place, dtype)


def _assert_exact(call: Call, place: Placement, dtype: torch.dtype) -> None:
    leaves = call.leaves(place.device, dtype)
    exact = call.results([x.detach().cpu().double().requires_grad_() for x in leaves], "reference")
    with gpu.full_digits():
        ours = call.results(leaves, None if place.backend == "automatic" else place.backend)
    for result, true in zip(ours, exact, strict=True):
        assert result.device.type == torch.device(place.device).type
        assert result.dtype == dtype
        error = (result.cpu().double() - true).norm() / true.norm()
        units = 100 if dtype == torch.float32 else 8  # libraries may add in ways of their own
        assert error < units * torch.finfo(dtype).eps, f"{error:.1e}"


@on_every_device
def test_kernels_run_on_the_stream_of_the_caller(call: Call, place: Placement) -> None:
    leaves = call.leaves(place.device)
    expected = call.results(leaves, place.backend)
    values = leaves[0].detach().clone()
    with torch.no_grad():
        leaves[0].fill_(torch.nan)
    if gpu.is_gpu(place.device):
        torch.cuda.synchronize()
    # Whoever does not wait for this stream reads NaN, or returns before its results are written.
    with gpu.side_stream(place.device):
        with torch.no_grad():
            leaves[0].copy_(values)
        results = call.results(leaves, place.backend)
    for got, wanted in zip(results, expected, strict=True):
        assert torch.equal(got, wanted)


@on_every_device
def test_graphs_replay_forward_and_backward(call: Call, place: Placement) -> None:
    leaves, other = call.leaves(place.device), call.leaves(place.device, seed=77)
    output = call.function(*leaves, backend=place.backend)
    noise = torch.randn_like(output)

    def both() -> list[Tensor]:
        output = call.function(*leaves, backend=place.backend)
        return [output, *torch.autograd.grad(output, leaves, noise)]

    replay, results = gpu.captured(both, place.device)
    for values in (other, call.leaves(place.device, seed=99)):
        with torch.no_grad():
            for leaf, value in zip(leaves, values, strict=True):
                leaf.copy_(value)
        replay()
        replayed = [x.detach().clone() for x in results]
        for got, wanted in zip(replayed, both(), strict=True):
            assert torch.equal(got, wanted.detach())


@on_every_device
def test_the_host_never_waits(call: Call, place: Placement) -> None:
    leaves = call.leaves(place.device)
    noise = torch.randn_like(call.function(*leaves, backend=place.backend))
    call.results(leaves, place.backend)
    with gpu.synchronisation_forbidden(place.device):
        output = call.function(*leaves, backend=place.backend)
        torch.autograd.grad(output, leaves, noise)
        with torch.inference_mode():
            call.function(*leaves, backend=place.backend)


@on_every_device
def test_memory_is_that_of_results_and_workspaces(call: Call, place: Placement) -> None:
    # Large enough that hidden copies of a tensor, or of one in float32, would be seen.
    grown = call._replace(
        shapes=tuple(
            (8 * s[0], *s[1:2], *(2 * n for n in s[2:]))
            if len(s) == 5 and s[1] > 1
            else (32 * s[0], *s[1:])
            if len(s) == 4
            else s
            for s in call.shapes
        )
    )
    if not gpu.is_gpu(place.device):
        grown = call
    leaves = grown.leaves(place.device, torch.bfloat16)
    output = grown.function(*leaves, backend=place.backend)
    noise, size = torch.randn_like(output), output.nbytes
    with torch.inference_mode():
        forward = gpu.peak_bytes(
            lambda: grown.function(*leaves, backend=place.backend), place.device
        )
    assert forward <= 1.5 * size + 2**21
    # Backward: gradients, and once the gradient times the derivative of the activation.
    backward = gpu.peak_bytes(
        lambda: torch.autograd.grad(output, leaves, noise, retain_graph=True), place.device
    )
    assert backward <= 1.5 * (sum(x.nbytes for x in leaves) + size) + 2**21


@on_every_device
def test_a_hundred_repeats_give_the_same_bits(call: Call, place: Placement) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        leaves = call.leaves(place.device, dtype)
        first = call.results(leaves, place.backend)
        noise = torch.randn_like(first[0])
        expected = torch.autograd.grad(call.function(*leaves, backend=place.backend), leaves, noise)
        for _ in range(100):
            output = call.function(*leaves, backend=place.backend)
            again = torch.autograd.grad(output, leaves, noise)
            assert torch.equal(output, first[0])
            assert all(torch.equal(x, y) for x, y in zip(again, expected, strict=True))


@pytest.mark.parametrize(
    ("call", "place", "mode"),
    [(call, place, mode) for call, place in fused_calls() for mode in gpu.modes(place.device)],
    ids=str,
)
def test_compiled_forward_and_backward(call: Call, place: Placement, mode: str) -> None:
    torch.compiler.reset()

    def function(*tensors: Tensor) -> Tensor:
        return call.function(tensors[0] * 1.5, *tensors[1:], backend=place.backend).sin()

    compiled = torch.compile(function, fullgraph=True, **gpu.compiler(place.device, mode))
    # The third call of reduce-overhead replays a graph that the second one recorded.
    for seed in (0, 11, 22):
        leaves = call.leaves(place.device, seed=seed)
        noise = torch.randn_like(function(*leaves))
        expected = _with_gradients(function, leaves, noise)
        torch.compiler.cudagraph_mark_step_begin()
        for got, wanted in zip(_with_gradients(compiled, leaves, noise), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


ALIASED: dict[str, tuple[tuple[int, ...], Callable[..., Tensor]]] = {
    "depthwise_conv3d": (
        (1, 1, 5, 5, 5),
        lambda x, backend: depthwise_conv3d(x, x, padding=2, activation="silu", backend=backend),
    ),
    "relu_linear_attention_qkv": (
        (2, 48, 3, 4, 5),
        lambda x, backend: relu_linear_attention_qkv([x, x], 16, backend=backend),
    ),
    "relu_linear_attention": (
        (2, 3, 37, 16),
        lambda x, backend: relu_linear_attention(x, x, x, backend=backend),
    ),
}


@pytest.mark.parametrize(
    ("name", "place", "mode"),
    [
        (name, place, mode)
        for name in ALIASED
        for place in [Placement("cpu", "native"), *placements(name.removesuffix("_qkv"))]
        for mode in gpu.modes(place.device)
    ],
    ids=str,
)
def test_compiled_gradients_of_one_tensor_passed_twice(
    name: str, place: Placement, mode: str
) -> None:
    shape, function = ALIASED[name]

    def both(x: Tensor) -> Tensor:
        return function(x, place.backend)

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, **gpu.compiler(place.device, mode))
    for _ in range(3):
        leaf = torch.randn(shape).to(place.device).requires_grad_()
        noise = torch.randn_like(both(leaf))
        expected = _with_gradients(both, [leaf], noise)
        # By the rule of sums: the gradient is that of the reference, too.
        exact = _with_gradients(lambda x: function(x, "reference"), [leaf], noise)
        torch.compiler.cudagraph_mark_step_begin()
        got = _with_gradients(compiled, [leaf], noise)
        for ours, eager, true in zip(got, expected, exact, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours, true, rtol=1e-3, atol=1e-3)


@on_every_device
def test_another_device_than_the_current_one(call: Call, place: Placement) -> None:
    if not gpu.is_gpu(place.device):
        other = place.device
    elif torch.cuda.device_count() < 2:
        pytest.skip("torch sees one CUDA device only")
    else:
        other = "cuda:1"
        assert torch.cuda.current_device() == 0
    expected = call.results(call.leaves(place.device), place.backend)
    results = call.results(call.leaves(other), place.backend)
    for got, wanted in zip(results, expected, strict=True):
        assert got.device.type == torch.device(other).type
        torch.testing.assert_close(got.cpu(), wanted.cpu(), rtol=1e-5, atol=1e-5)


def test_there_are_fused_kernels_for_this_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    served = {call.operator for call, place in fused_calls() if gpu.is_gpu(place.device)}
    lacking = sorted({call.operator for call, _ in fused_calls()} - served)
    if lacking:
        pytest.skip(f"no fused kernels of {lacking} here: python -m evit_kernels says why")


def _with_gradients(
    function: Callable[..., Tensor], leaves: list[Tensor], noise: Tensor
) -> list[Tensor]:
    output = function(*leaves)
    # Cloned, because the next step of a compiled graph writes over its results.
    result = output.detach().clone()
    return [result, *(x.clone() for x in torch.autograd.grad(output, leaves, noise))]
