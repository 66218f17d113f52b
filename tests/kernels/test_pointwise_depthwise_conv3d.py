"""pointwise_depthwise_conv3d gives the bits of the two operators that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from depthwise_cases import ACTIVATIONS, DTYPES, LAYOUTS, Case, cases, lay_out
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from evit_kernels import pointwise_conv3d, pointwise_depthwise_conv3d

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Both:
    """A call: the depthwise half (its input is what lies between), and the pointwise half."""

    depthwise: Case
    in_channels: int
    activation: str | None = "hardswish"
    bias: bool = True

    def label(self) -> str:
        """A short name for test reports."""
        width = self.depthwise.size[2]
        return f"{self.in_channels}-{self.depthwise.channels}-w{width}-{self.depthwise.label()}"

    def tensors(self) -> list[Tensor | None]:
        """Input, weight and bias of the pointwise half, weight and bias of the depthwise half."""
        case = self.depthwise
        _, weight, bias = replace(case, layout="contiguous", size=(1, 1, 1)).tensors()
        generator = torch.Generator().manual_seed(1)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)

        x = lay_out(randn(case.batch, self.in_channels, *case.size), case.layout)
        first = randn(case.channels, self.in_channels, 1, 1, 1) / self.in_channels**0.5
        if case.parameters == "strided":
            first = first.transpose(0, 1).contiguous().transpose(0, 1)
        return [x, first, randn(case.channels) if self.bias else None, weight, bias]

    def at_once(self, tensors: list[Tensor | None], backend: str = "native") -> Tensor:
        """Calls the operator."""
        case = self.depthwise
        options: dict[str, Any] = {
            "temporal_padding": case.temporal_padding,
            "pointwise_activation": self.activation,
            "activation": case.activation,
        }
        window = (case.stride, case.padding, case.dilation)
        return pointwise_depthwise_conv3d(*tensors, *window, backend=backend, **options)  # type: ignore[arg-type]

    def one_by_one(self, tensors: list[Tensor | None], backend: str = "native") -> Tensor:
        """Calls the two operators."""
        x, first, shift, weight, bias = tensors
        assert x is not None
        assert first is not None
        assert weight is not None
        middle = pointwise_conv3d(x, first, shift, activation=self.activation, backend=backend)
        return self.depthwise.call(middle, weight, bias, backend)


def _assert_same_bits(call: Both, tensors: list[Tensor | None] | None = None) -> None:
    tensors = tensors or call.tensors()
    ours, theirs = call.at_once(tensors), call.one_by_one(tensors)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert ours.stride() == theirs.stride()


def _window(channels: int, size: tuple[int, int, int], **options: Any) -> Case:
    kernel = options.pop("kernel", 3)
    options.setdefault("padding", (kernel // 2,) * 3)
    options.setdefault("temporal_padding", "replicate")
    options.setdefault("activation", "hardswish")
    return Case(1, channels, size, (kernel,) * 3, **options)


# What the kernels do at once: blocks and remainders of columns, slabs and panels of channels,
# several tiles of frames, rows so wide that a task has one slab, padding beyond the kernel.
CALLS = [
    Both(_window(64, (8, 9, 56)), 16),
    Both(_window(64, (8, 9, 56), stride=(1, 2, 2)), 16, "gelu"),
    Both(_window(96, (5, 7, 7), stride=(2, 2, 2)), 24, "silu", bias=False),
    Both(_window(48, (9, 6, 29), temporal_padding="causal"), 300, None),
    Both(_window(33, (4, 5, 19), temporal_padding="zeros", bias=False), 7, "relu6"),
    Both(_window(40, (40, 3, 50)), 12, "gelu_tanh"),
    Both(_window(80, (12, 3, 170)), 5),
    Both(_window(16, (3, 4, 400)), 8),
    Both(_window(64, (10, 6, 14), kernel=5), 16),
    Both(_window(1, (6, 4, 11)), 1, "relu"),
    Both(_window(32, (20, 4, 60), padding=(10, 1, 1), temporal_padding="zeros"), 9),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS, ids=Both.label)
def test_the_bits_of_two_calls(call: Both, dtype: torch.dtype, instruction_set: str) -> None:
    _assert_same_bits(replace(call, depthwise=replace(call.depthwise, dtype=dtype)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout: str, instruction_set: str) -> None:
    case = _window(37, (4, 6, 9), layout=layout, parameters="strided")
    for dtype in (torch.float32, torch.bfloat16):
        _assert_same_bits(Both(replace(case, batch=2, dtype=dtype), 10))


@given(
    depthwise=cases(),
    in_channels=st.integers(1, 70),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
)
@example(depthwise=replace(CALLS[0].depthwise, batch=0), in_channels=4, activation=None, bias=True)
def test_any_call_gives_the_bits_of_two(
    depthwise: Case, in_channels: int, activation: str | None, bias: bool
) -> None:
    _assert_same_bits(Both(depthwise, in_channels, activation, bias))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_against_float64(backend: str) -> None:
    for call in CALLS[:4]:
        tensors = call.tensors()
        exact = call.one_by_one([None if t is None else t.double() for t in tensors], "reference")
        torch.testing.assert_close(
            call.at_once(tensors, backend).double(), exact, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_specials_spread_as_in_two_calls(special: float, activation: str | None) -> None:
    call = Both(_window(33, (4, 6, 15)), 9, activation)
    for position, place in enumerate([(0, 3, 1, 2, 14), (5, 8, 0, 0, 0), (32,), (7, 0, 1, 1, 1)]):
        tensors = call.tensors()
        changed = tensors[position]
        assert changed is not None
        changed[place] = special
        _assert_same_bits(call, tensors)


@pytest.mark.parametrize("call", [CALLS[0], CALLS[5]], ids=Both.label)
def test_any_number_of_threads_and_any_repeat_give_the_same_bits(call: Both) -> None:
    tensors = call.tensors()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = call.at_once(tensors)
        for number in (2, 3, 7):
            torch.set_num_threads(number)
            assert torch.equal(call.at_once(tensors), expected)
    finally:
        torch.set_num_threads(threads)
    for _ in range(100):
        assert torch.equal(call.at_once(tensors), expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradients_are_those_of_two_calls(backend: str) -> None:
    for call in (CALLS[0], CALLS[2]):
        results = []
        for function in (call.at_once, call.one_by_one):
            leaves = [None if t is None else t.detach().requires_grad_() for t in call.tensors()]
            output = function(leaves, backend)
            wanted = [t for t in leaves if t is not None]
            results.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
        for ours, theirs in zip(*results, strict=True):
            assert torch.equal(ours, theirs)


def test_nothing_of_the_size_between_is_kept_without_gradients() -> None:
    """The point of it all: the largest tensor is never there."""
    x = torch.randn(1, 2, 8, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    first, weight = torch.randn(512, 2, 1, 1, 1), torch.randn(512, 1, 3, 3, 3)
    with torch.no_grad():
        pointwise_depthwise_conv3d(x, first, None, weight, None, (1, 2, 2), 1)
        with torch.profiler.profile(profile_memory=True) as seen:
            pointwise_depthwise_conv3d(x, first, None, weight, None, (1, 2, 2), 1)
    between = 4 * 512 * 8 * 32 * 32
    assert max(event.cpu_memory_usage for event in seen.events()) < between / 3
