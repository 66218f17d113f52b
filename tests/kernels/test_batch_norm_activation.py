"""batch_norm_activation against float64, any shape and layout; its bits, specials and memory."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from batch_norm_cases import NAMES, Case, cases
from depthwise_cases import ACTIVATIONS
from hypothesis import example, given
from torch import Tensor

from evit_kernels import batch_norm_activation
from evit_kernels.batch_norm_activation import native

NAN, INF = float("nan"), float("inf")
# Whole vectors, several tokens in a vector, tokens left over, several blocks and several parts.
CASES = [
    Case(2, 64, (3, 11, 13)),
    Case(1, 8, (4, 17, 19)),
    Case(2, 24, (2, 15, 21)),
    Case(1, 37, (3, 9, 14)),
    Case(2, 48, (2, 12, 13), layout="channels_last_slice"),
    Case(2, 12, (3, 13, 17), layout="contiguous"),
    Case(1, 3, (4, 40, 41), layout="contiguous"),
    Case(1, 272, (1, 5, 5)),
]
HALVES = [torch.bfloat16, torch.float16]


def _assert_equals_pytorch(case: Case) -> None:
    ours = case.results("native")
    exact = case.results("reference", torch.float64)
    if case.dtype == torch.float64:
        for name, value in ours.items():
            torch.testing.assert_close(value, exact[name], rtol=1e-10, atol=1e-11, msg=name)
        return
    theirs = case.results("reference")
    for name, value in ours.items():
        factor = FORWARD if name == "output" or name not in NAMES else BACKWARD
        assert_accurate(value, theirs[name], exact[name], factor, name)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_error_is_that_of_pytorch(
    case: Case, training: bool, dtype: torch.dtype, instruction_set: str
) -> None:
    case = replace(case, training=training, dtype=dtype, activation="hardswish")
    _assert_equals_pytorch(replace(case, float_parameters=training))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_of_every_activation(
    activation: str | None, layout: str, dtype: torch.dtype, instruction_set: str
) -> None:
    for training in (True, False):
        case = Case(2, 29, (2, 9, 14), training, activation, layout=layout, dtype=dtype)
        _assert_equals_pytorch(case)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mean", [30.0, 1e3, -1e3])
def test_a_mean_far_from_zero_costs_no_more_than_in_pytorch(
    mean: float, layout: str, instruction_set: str
) -> None:
    # A smooth activation: at a kink, one rounding decides between two derivatives.
    _assert_equals_pytorch(Case(2, 24, (4, 20, 21), activation="silu", mean=mean, layout=layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("outliers", [1, 8, 9, 70])
def test_moments_do_not_trust_the_first_values(
    outliers: int, layout: str, instruction_set: str
) -> None:
    # The first tokens lie a thousand deviations away from all others.
    x = torch.randn(1, 24, 1, 80, 90)
    x.flatten(2)[:, :, :outliers] -= 1000
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last_3d)
    mean, variance = native.statistics(x)
    true_variance, true_mean = torch.var_mean(x.double(), (0, 2, 3, 4), correction=0)
    torch.testing.assert_close(mean.double(), true_mean, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(variance.double(), true_variance, rtol=2e-6, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_constant_channel_has_no_variance(layout: str, instruction_set: str) -> None:
    x = torch.full((2, 24, 3, 9, 11), 1234.567)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last_3d)
    mean, variance = native.statistics(x)
    assert torch.equal(mean, x[0, :, 0, 0, 0])
    # Nothing beyond the rounding of the mean itself, squared.
    assert (variance <= (torch.finfo(x.dtype).eps * mean).square()).all()


@given(case=cases())
@example(case=Case(0, 8, (2, 3, 4), training=False, activation="gelu"))
@example(case=Case(0, 8, (2, 3, 4), layout="contiguous"))
@example(case=Case(1, 1, (1, 1, 2), layout="contiguous"))
@example(case=Case(2, 1, (1, 1, 1)))
@example(case=Case(3, 32, (3, 5, 1), layout="channels_last_expanded"))
@example(case=Case(2, 16, (4, 1, 7), layout="channels_last_slice", activation="silu"))
@example(case=Case(2, 17, (1, 1, 1), training=False, activation="relu"))
def test_any_call_equals_pytorch(case: Case) -> None:
    # Few values per channel may have next to no variance: then digits are lost by everybody, in
    # different places, and a larger eps keeps the comparison about the kernels.
    _assert_equals_pytorch(replace(case, eps=1e-1))


@pytest.mark.parametrize("channels", [1, 2, 24])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_format_is_kept(layout: str, channels: int) -> None:
    case = Case(2, channels, (4, 6, 8), layout=layout, activation="relu")
    leaves = [x.requires_grad_() for x in case.tensors()]
    output = case.call(leaves, case.running())
    assert output.stride() == leaves[0].stride()
    # The gradient of a sum is one number, expanded.
    assert torch.autograd.grad(output.sum(), leaves[0])[0].stride() == leaves[0].stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(2, 64, (4, 30, 31), activation="hardswish"),
        Case(1, 40, (4, 33, 35), activation="gelu"),
        Case(3, 20, (4, 30, 31), layout="contiguous", activation="relu"),
        Case(2, 32, (4, 30, 31), layout="channels_last_slice", training=False),
    ],
    ids=Case.label,
)
def test_any_number_of_threads_gives_the_same_bits(
    case: Case, dtype: torch.dtype, instruction_set: str
) -> None:
    case, results = replace(case, dtype=dtype), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(case.results("native"))
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_hundred_repeats_give_the_same_bits(layout: str) -> None:
    torch.set_num_threads(2)
    case = Case(2, 24, (2, 21, 23), activation="silu", layout=layout)
    first = case.results("native")
    for _ in range(100):
        again = case.results("native")
        assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_specials_in_the_input_spread_as_in_pytorch(
    activation: str | None, special: float, training: bool
) -> None:
    # PyTorch's derivative of relu6 at NaN is 0 or 1, depending on the position in memory.
    names = NAMES[:1] if activation == "relu6" else NAMES
    for layout in ("contiguous", "channels_last"):
        case = Case(2, 17, (2, 5, 40), training, activation, layout=layout)
        results = []
        # PyTorch in float64: its fp32 gelu of infinity is infinity or NaN, depending on the place.
        for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
            leaves, running = case.tensors(), [x.to(dtype) for x in case.running()]
            # At the beginning, in the middle, and among the tokens left over.
            leaves[0][0, 3, 0, 0, 0] = leaves[0][0, 8, 1, 2, 3] = leaves[0][1, 16, 1, 4, 39] = (
                special
            )
            leaves = [x.to(dtype).requires_grad_() for x in leaves]
            output = case.call(leaves, running, backend)
            grads = torch.autograd.grad(output.sum(), leaves)
            results.append([x.float() for x in (*(output, *grads)[: len(names)], *running)])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4, equal_nan=True)


@pytest.mark.parametrize("special", [NAN, INF])
def test_specials_in_the_gradient_spread_as_in_pytorch(special: float) -> None:
    for training in (True, False):
        case, results = Case(1, 17, (3, 5, 6), training), []
        for backend in ("native", "reference"):
            leaves = [x.requires_grad_() for x in case.tensors()]
            output = case.call(leaves, case.running(), backend)
            grad = torch.ones_like(output)
            grad[0, 2, 1, 2, 3] = special
            results.append(torch.autograd.grad(output, leaves, grad))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_keeps_the_input_and_vectors_of_channels(
    activation: str | None, training: bool
) -> None:
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    case = Case(2, 32, (3, 7, 9), training, activation)
    leaves = [x.requires_grad_() for x in case.tensors()]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = case.call(leaves, case.running())
    output.sum().backward()
    large = [x for x in kept if x.numel() > 32]
    assert [x.data_ptr() for x in large] == [leaves[0].data_ptr()]
    assert [x.shape for x in kept if x.numel() <= 32] == [(32,)] * 4


@pytest.mark.parametrize("axis", [0, 2, 3, 4])
def test_offsets_beyond_31_bits(axis: int) -> None:
    # A view whose neighbours along one axis lie more than 2^31 elements apart, in a mapping whose
    # pages cost nothing before they are written. An offset of 32 bits would read something else.
    size = [2, 32, 3, 5, 6]
    small = torch.randn(size).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    strides = list(small.stride())
    strides[axis] = 2**31 + 2**20
    elements = (size[axis] - 1) * strides[axis] + small.numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    lazy = torch.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=torch.bfloat16)
    far = lazy.as_strided(size, strides)
    far.copy_(small)
    results = []
    for x in (far.detach().requires_grad_(), small.requires_grad_()):
        output = batch_norm_activation(x, None, None, None, None, training=True, backend="native")
        grad = torch.linspace(-1, 1, output.numel()).view(size).bfloat16()
        results.append([output, *torch.autograd.grad(output, x, grad)])
    for ours, expected in zip(*results, strict=True):
        # Cut elsewhere, sums differ in their last digits.
        torch.testing.assert_close(ours, expected, rtol=2e-2, atol=1e-2)
