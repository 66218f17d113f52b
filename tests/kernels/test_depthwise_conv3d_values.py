"""The same bits every time, NaN and infinity where PyTorch has them, and addresses beyond 2^31."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from depthwise_cases import ACTIVATIONS, Case
from torch import Tensor

from evit_kernels import depthwise_conv3d

NAN, INF = float("nan"), float("inf")
# Large enough for several tiles and several splits of the weight gradient's sum.
BUSY = [
    Case(2, 72, (6, 30, 30), (3, 3, 3), padding=(1, 1, 1), activation="hardswish"),
    Case(1, 40, (5, 41, 37), (5, 5, 5), stride=(2, 2, 2), padding=(2, 2, 2), activation="gelu"),
    Case(1, 72, (20, 10, 58), (3, 3, 3), padding=(1, 1, 1), activation="hardswish"),
    Case(1, 33, (8, 20, 21), (3, 5, 4), stride=(1, 3, 1), padding=(1, 0, 2), dilation=(1, 2, 1)),
    Case(3, 16, (4, 24, 24), (5, 3, 3), padding=(0, 1, 1), temporal_padding="causal"),
]


def _outputs(case: Case, leaves: list[Tensor]) -> list[Tensor]:
    output = case.call(*leaves, "native")
    return [output.detach(), *torch.autograd.grad(output, leaves, output.detach())]


def _leaves(case: Case) -> list[Tensor]:
    return [x.requires_grad_() for x in case.tensors() if x is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", BUSY, ids=Case.label)
def test_any_number_of_threads_gives_the_same_bits(
    case: Case, dtype: torch.dtype, instruction_set: str
) -> None:
    case = replace(case, dtype=dtype)
    leaves, results = _leaves(case), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(_outputs(case, leaves))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("case", BUSY[:2], ids=Case.label)
def test_hundred_repeats_give_the_same_bits(case: Case) -> None:
    leaves = _leaves(replace(case, batch=1, size=(3, 17, 19)))
    torch.set_num_threads(2)
    first = _outputs(case, leaves)
    for _ in range(100):
        again = _outputs(case, leaves)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x = torch.randn(3, 24, 4, 12, 13).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(24, 1, 3, 3, 3)
    together = depthwise_conv3d(x, weight, padding=1, activation="silu", backend="native")
    for i in range(3):
        alone = depthwise_conv3d(
            x[i : i + 1], weight, padding=1, activation="silu", backend="native"
        )
        assert torch.equal(together[i : i + 1], alone)


def _assert_same_specials(case: Case, input: Tensor, weight: Tensor, bias: Tensor) -> None:
    results = []
    for backend in ("native", "reference"):
        # PyTorch's data gradient multiplies the weights by zeros outside, see below.
        leaves = [input.clone().requires_grad_(bool(weight.isfinite().all()))]
        leaves += [x.clone().requires_grad_() for x in (weight, bias)]
        output = case.call(*leaves, backend)
        wanted = [x for x in leaves if x.requires_grad]
        results.append([output.detach(), *torch.autograd.grad(output.sum(), wanted)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_specials_in_the_input_spread_as_in_pytorch(special: float, activation: str | None) -> None:
    case = Case(1, 17, (3, 7, 12), (3, 3, 3), padding=(1, 1, 1), activation=activation)
    input, weight, bias = case.tensors()
    assert bias is not None
    # In the middle and in a corner, in a whole vector of channels and in the remainder.
    input[0, 3, 1, 4, 6] = input[0, 16, 2, 6, 11] = input[0, 8, 0, 0, 0] = special
    if activation == "relu6" and special != special:
        # PyTorch's derivative there is 0 or 1, depending on the position in memory.
        ours, theirs = (case.call(input, weight, bias, b) for b in ("native", "reference"))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
        return
    _assert_same_specials(case, input, weight, bias)


@pytest.mark.parametrize("special", [NAN, INF])
def test_specials_in_weight_and_bias_spread_as_in_pytorch(special: float) -> None:
    # Without padding: there PyTorch multiplies a weight by the zeros outside, or does not,
    # depending on the library it hands the convolution to; our kernels never do.
    case = Case(1, 17, (3, 5, 6), (3, 3, 3))
    input, weight, bias = case.tensors()
    assert bias is not None
    weight[5, 0, 1, 1, 1] = bias[16] = special
    _assert_same_specials(case, input, weight, bias)


@pytest.mark.parametrize("special", [NAN, INF])
def test_specials_in_the_gradient_spread_as_in_pytorch(special: float) -> None:
    case = Case(1, 17, (3, 5, 6), (3, 3, 3), padding=(1, 1, 1))
    results = []
    for backend in ("native", "reference"):
        leaves = _leaves(case)
        output = case.call(*leaves, backend)
        grad = torch.ones_like(output)
        grad[0, 2, 1, 2, 3] = special
        results.append(torch.autograd.grad(output, leaves, grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_repeated_frames_hide_no_special() -> None:
    # The weights of taps that land on one repeated frame are added first. So where they have both
    # signs, infinity there gives infinity and not, as in PyTorch, infinity minus infinity: NaN.
    # It never gives a finite number.
    case = Case(1, 16, (2, 4, 4), (5, 1, 1), padding=(2, 0, 0), temporal_padding="replicate")
    input, weight, bias = case.tensors()
    for special in (NAN, INF):
        input[0, 3, 0, 1, 1] = special
        ours = case.call(input, weight, bias, "native")
        theirs = case.call(input, weight, bias, "reference")
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        if special != special:
            assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_beyond_the_storage_type_become_infinite(
    dtype: torch.dtype, instruction_set: str
) -> None:
    largest = torch.finfo(dtype).max
    x = torch.full((1, 19, 1, 3, 3), largest, dtype=dtype)
    output = depthwise_conv3d(x, torch.ones(19, 1, 1, 3, 3, dtype=dtype), backend="native")
    assert output.isposinf().all()
    same = depthwise_conv3d(x, torch.ones(19, 1, 1, 1, 1, dtype=dtype), backend="native")
    assert (same == largest).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number_survives(dtype: torch.dtype, instruction_set: str) -> None:
    # All 65,536 bit patterns times one: subnormals, infinities, both zeros; NaN stays NaN.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).view(1, 16, 1, 64, 64)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    output = depthwise_conv3d(x, torch.ones(16, 1, 1, 1, 1, dtype=dtype), backend="native")
    torch.testing.assert_close(output, x, rtol=0, atol=0, equal_nan=True)


def _lazy(elements: int) -> Tensor:
    """Zeros that cost no memory before they are written: pages of an anonymous mapping."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return torch.frombuffer(mmap.mmap(-1, 2 * elements, flags=flags), dtype=torch.bfloat16)


@pytest.mark.on_cpu("memory that costs nothing before it is written is the CPU's")
@pytest.mark.parametrize("axis", [0, 2, 3, 4])
def test_offsets_beyond_31_bits(axis: int) -> None:
    # A small view whose neighbours along one axis lie more than 2^31 elements apart. What an
    # offset of 32 bits would read instead is zero, or not mapped at all. Outputs are dense, so
    # theirs cannot pass 2^31 without 4 GiB of real memory; they are indexed by the same type.
    size = [2, 24, 3, 5, 6]
    small = torch.randn(size).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    strides = list(small.stride())
    strides[axis] = 2**31 + 2**20
    far = _lazy((size[axis] - 1) * strides[axis] + small.numel()).as_strided(size, strides)
    far.copy_(small)
    weight = torch.randn(24, 1, 3, 3, 3).bfloat16()
    results = []
    for x in (far.detach().requires_grad_(), small.requires_grad_()):
        w = weight.clone().requires_grad_()
        output = depthwise_conv3d(x, w, padding=1, activation="relu", backend="native")
        results.append([output, *torch.autograd.grad(output.float().sum(), [x, w])])
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)
