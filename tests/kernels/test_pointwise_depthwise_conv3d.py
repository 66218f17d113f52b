"""pointwise_depthwise_conv3d gives the bits of the single operators that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from depthwise_cases import ACTIVATIONS, DTYPES, LAYOUTS, Case, cases, lay_out
from hypothesis import example, given
from hypothesis import strategies as st
from joining import WHY_NOT, joins
from torch import Tensor

from evit_kernels import pointwise_conv3d, pointwise_depthwise_conv3d
from evit_kernels.depthwise_conv3d.geometry import make
from evit_kernels.pointwise_depthwise_conv3d import native

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Joined:
    """A call: the depthwise part, and the pointwise ones around it, or None."""

    depthwise: Case  # its input is what lies between
    in_channels: int | None
    activation: str | None = "hardswish"
    bias: bool = True
    out_channels: int | None = None
    residual: bool = False

    def label(self) -> str:
        """A short name for test reports."""
        width = self.depthwise.size[2]
        channels = f"{self.in_channels}-{self.depthwise.channels}-{self.out_channels}"
        return f"{channels}-w{width}-{self.depthwise.label()}"

    def tensors(self) -> list[Tensor | None]:
        """Input; weight and bias of the first, depthwise and last part; the residual."""
        case = self.depthwise
        _, weight, bias = replace(case, layout="contiguous", size=(1, 1, 1)).tensors()
        generator = torch.Generator().manual_seed(1)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)

        def pointwise(depth: int | None, width: int | None) -> list[Tensor | None]:
            if depth is None or width is None:
                return [None, None]
            matrix = randn(width, depth, 1, 1, 1) / depth**0.5
            if case.parameters == "strided":
                matrix = matrix.transpose(0, 1).contiguous().transpose(0, 1)
            return [matrix, randn(width) if self.bias else None]

        channels = case.channels if self.in_channels is None else self.in_channels
        x = lay_out(randn(case.batch, channels, *case.size), case.layout)
        first = pointwise(self.in_channels, case.channels)
        last = pointwise(case.channels, self.out_channels)
        tensors = [x, *first, weight, bias, *last, None]
        if self.residual and self.out_channels is not None:
            size = self.one_by_one(tensors, "reference").shape
            tensors[-1] = lay_out(randn(*size), case.layout)
        return tensors

    def at_once(self, tensors: list[Tensor | None], backend: str = "native") -> Tensor:
        """Calls the operator."""
        case = self.depthwise
        *before, project_weight, project_bias, residual = tensors
        options: dict[str, Any] = {
            "temporal_padding": case.temporal_padding,
            "pointwise_activation": self.activation,
            "activation": case.activation,
            "project_weight": project_weight,
            "project_bias": project_bias,
            "residual": residual,
        }
        window = (case.stride, case.padding, case.dilation)
        return pointwise_depthwise_conv3d(*before, *window, backend=backend, **options)  # type: ignore[arg-type]

    def one_by_one(self, tensors: list[Tensor | None], backend: str = "native") -> Tensor:
        """Calls the single operators."""
        x, first, first_bias, weight, bias, last, last_bias, residual = tensors
        assert x is not None
        assert weight is not None
        if first is not None:
            x = pointwise_conv3d(x, first, first_bias, activation=self.activation, backend=backend)
        x = self.depthwise.call(x, weight, bias, backend)
        if last is not None:
            x = pointwise_conv3d(x, last, last_bias, residual=residual, backend=backend)
        return x


def _assert_same_bits(call: Joined, tensors: list[Tensor | None] | None = None) -> None:
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
    Joined(_window(64, (8, 9, 56)), 16),
    Joined(_window(64, (8, 9, 56), stride=(1, 2, 2)), 16, "gelu"),
    Joined(_window(96, (5, 7, 7), stride=(2, 2, 2)), 24, "silu", bias=False),
    Joined(_window(48, (9, 6, 29), temporal_padding="causal"), 300, None),
    Joined(_window(33, (4, 5, 19), temporal_padding="zeros", bias=False), 7, "relu6"),
    Joined(_window(40, (40, 3, 50)), 12, "gelu_tanh"),
    Joined(_window(80, (12, 3, 170)), 5),
    Joined(_window(16, (3, 4, 400)), 8),
    Joined(_window(64, (10, 6, 14), kernel=5), 16),
    Joined(_window(1, (6, 4, 11)), 1, "relu"),
    Joined(_window(32, (20, 4, 60), padding=(10, 1, 1), temporal_padding="zeros"), 9),
]

# With the last convolution, and without the first: tiles of all channels, whole panels of results
# and parts, rows shorter and longer than a tile of tokens, padding beyond the kernel, the most
# channels of a tile, and more.
PROJECTED = [
    Joined(_window(64, (8, 9, 56)), 16, out_channels=16, residual=True),
    Joined(_window(64, (8, 9, 23), stride=(1, 2, 2)), 16, "gelu", out_channels=40),
    Joined(_window(16, (5, 9, 29)), None, out_channels=16, residual=True),
    Joined(_window(33, (4, 5, 19), temporal_padding="zeros", bias=False), 7, "relu6", False, 1),
    Joined(_window(96, (5, 7, 7), stride=(2, 2, 2)), None, out_channels=300),
    Joined(_window(256, (4, 5, 7)), 5, out_channels=70, residual=True),
    Joined(_window(272, (4, 5, 7)), 5, out_channels=7, residual=True),
    Joined(_window(20, (40, 5, 60)), None, out_channels=20, residual=True),
    Joined(_window(40, (40, 3, 50), temporal_padding="causal"), 12, out_channels=10),
    Joined(_window(80, (12, 3, 400)), 5, out_channels=9),
    Joined(_window(32, (6, 5, 9), kernel=5), 16, out_channels=33, residual=True),
    Joined(_window(1, (6, 4, 11)), 1, "relu", out_channels=1, residual=True),
    Joined(_window(32, (20, 4, 9), padding=(10, 1, 1), temporal_padding="zeros"), 9, None, True, 8),
    Joined(_window(24, (2, 4, 9)), 9, out_channels=8),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS + PROJECTED, ids=Joined.label)
def test_the_bits_of_single_calls(call: Joined, dtype: torch.dtype, instruction_set: str) -> None:
    _assert_same_bits(replace(call, depthwise=replace(call.depthwise, dtype=dtype)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout: str, instruction_set: str) -> None:
    case = _window(37, (4, 6, 9), layout=layout, parameters="strided")
    for dtype in (torch.float32, torch.bfloat16):
        case = replace(case, batch=2, dtype=dtype)
        _assert_same_bits(Joined(case, 10))
        _assert_same_bits(Joined(case, 10, out_channels=12, residual=True))
        _assert_same_bits(Joined(case, None, out_channels=12, residual=True))


@pytest.mark.parametrize("call", [PROJECTED[2], PROJECTED[5], PROJECTED[7]], ids=Joined.label)
def test_kernels_join_what_fits_in_cache(call: Joined) -> None:
    """Otherwise all of this would compare single calls with single calls."""
    x, first, _, weight, _, last, *_ = call.tensors()
    assert x is not None
    assert weight is not None
    geometry = make(
        weight.new_empty(1, 1, 1, 1, 1).expand(1, weight.shape[0], *x.shape[2:]),
        weight,
        None,
        call.depthwise.stride,
        1,
        1,
        "replicate",
        "test",
    )
    assert native.serves(x, first, weight, last, geometry) == joins()
    assert not native.serves(x, None, weight, None, geometry)


@given(
    depthwise=cases(),
    in_channels=st.none() | st.integers(1, 70),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    out_channels=st.none() | st.integers(1, 70),
    residual=st.booleans(),
)
@example(replace(CALLS[0].depthwise, batch=0), 4, None, True, None, False)
@example(replace(CALLS[0].depthwise, batch=0), 4, None, True, 5, True)
def test_any_call_gives_the_bits_of_single_ones(
    depthwise: Case,
    in_channels: int | None,
    activation: str | None,
    bias: bool,
    out_channels: int | None,
    residual: bool,
) -> None:
    _assert_same_bits(Joined(depthwise, in_channels, activation, bias, out_channels, residual))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_against_float64(backend: str) -> None:
    for call in CALLS[:4] + PROJECTED[:4]:
        tensors = call.tensors()
        exact = call.one_by_one([None if t is None else t.double() for t in tensors], "reference")
        torch.testing.assert_close(
            call.at_once(tensors, backend).double(), exact, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_specials_spread_as_in_single_calls(special: float, activation: str | None) -> None:
    call = Joined(_window(33, (4, 6, 15)), 9, activation, out_channels=18, residual=True)
    places = [(0, 3, 1, 2, 14), (5, 8, 0, 0, 0), (32,), (7, 0, 1, 1, 1), (32,), (17, 2, 0, 0, 0)]
    for position, place in enumerate([*places, (9,), (0, 17, 3, 5, 14)]):
        tensors = call.tensors()
        changed = tensors[position]
        assert changed is not None
        changed[place] = special
        _assert_same_bits(call, tensors)


@pytest.mark.parametrize("call", [CALLS[0], CALLS[5], *PROJECTED[:3]], ids=Joined.label)
def test_any_number_of_threads_and_any_repeat_give_the_same_bits(call: Joined) -> None:
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
def test_gradients_are_those_of_single_calls(backend: str) -> None:
    for call in (CALLS[0], CALLS[2], *PROJECTED[:3]):
        results = []
        for function in (call.at_once, call.one_by_one):
            leaves = [None if t is None else t.detach().requires_grad_() for t in call.tensors()]
            output = function(leaves, backend)
            wanted = [t for t in leaves if t is not None]
            results.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
        for ours, theirs in zip(*results, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.skipif(not joins(), reason=WHY_NOT)
@pytest.mark.parametrize("last", [False, True])
def test_nothing_of_the_size_between_is_kept_without_gradients(last: bool) -> None:
    """The point of it all: the largest tensors are never there."""
    x = torch.randn(1, 2, 4, 16, 16).contiguous(memory_format=torch.channels_last_3d)
    first, weight = torch.randn(256, 2, 1, 1, 1), torch.randn(256, 1, 3, 3, 3)
    project = torch.randn(2, 256, 1, 1, 1) if last else None
    stride = 1 if last else (1, 2, 2)

    def call() -> Tensor:
        return pointwise_depthwise_conv3d(
            x, first, None, weight, None, stride, 1, project_weight=project
        )

    with torch.no_grad():
        call()
        with torch.profiler.profile(profile_memory=True) as seen:
            call()
    between = 4 * 256 * 4 * 16 * 16
    assert max(event.cpu_memory_usage for event in seen.events()) < between / 3
