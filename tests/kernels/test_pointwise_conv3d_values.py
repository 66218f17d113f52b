"""The same bits every time, and NaN and infinity where PyTorch has them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from depthwise_cases import ACTIVATIONS
from pointwise_cases import Case
from torch import Tensor

from evit_kernels import pointwise_conv3d

NAN, INF = float("nan"), float("inf")
# Several blocks of tokens, panels of channels, and splits of the weight gradient's sum.
BUSY = [
    Case(2, 72, 104, (3, 31, 30), activation="hardswish", residual="channels_last"),
    Case(1, 16, 8, (5, 41, 37), activation="gelu"),
    Case(1, 300, 33, (2, 7, 9), layout="contiguous", residual="contiguous"),
    Case(3, 48, 96, (1, 13, 11), groups=4),
]


def _outputs(case: Case, leaves: dict[str, Tensor]) -> list[Tensor]:
    output = case.call(leaves, "native")
    return [output.detach(), *torch.autograd.grad(output, list(leaves.values()), output.detach())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", BUSY, ids=Case.label)
def test_any_number_of_threads_gives_the_same_bits(
    case: Case, dtype: torch.dtype, instruction_set: str
) -> None:
    case = replace(case, dtype=dtype)
    leaves, results = case.leaves(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(_outputs(case, leaves))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("case", BUSY[:2], ids=Case.label)
def test_hundred_repeats_give_the_same_bits(case: Case) -> None:
    case = replace(case, batch=1, size=(2, 7, 13))
    leaves = case.leaves()
    torch.set_num_threads(2)
    first = _outputs(case, leaves)
    for _ in range(100):
        again = _outputs(case, leaves)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_a_position_does_not_depend_on_its_neighbours() -> None:
    # Blocks of tokens end elsewhere in a part than in the whole, and shorter tiles take their turn.
    x = torch.randn(3, 40, 4, 12, 13).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(56, 40, 1, 1, 1)
    together = pointwise_conv3d(x, weight, activation="silu", backend="native")
    for part in ((slice(1, 2),), (slice(None), slice(None), slice(1, 4), slice(5, 6))):
        alone = pointwise_conv3d(x[part], weight, activation="silu", backend="native")
        assert torch.equal(together[part], alone)


def _assert_same_specials(case: Case, change: dict[str, dict[tuple[int, ...], float]]) -> None:
    # PyTorch in float64: its fp32 gelu of infinity is infinity or NaN, depending on memory format.
    results = []
    for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
        tensors = case.tensors()
        for name, values in change.items():
            for place, special in values.items():
                tensors[name][place] = special
        leaves = {name: x.to(dtype).requires_grad_() for name, x in tensors.items()}
        output = case.call(leaves, backend)
        grads = torch.autograd.grad(output.sum(), list(leaves.values()))
        results.append([x.detach().float() for x in (output, *grads)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_specials_in_the_input_spread_as_in_pytorch(special: float, activation: str | None) -> None:
    # In whole vectors and in remainders, of channels and of tokens. Never two in one sum.
    case = Case(1, 17, 19, (2, 5, 7), activation=activation, residual="channels_last")
    places = {(0, 3, 0, 0, 0): special, (0, 16, 1, 4, 6): special, (0, 8, 1, 0, 3): special}
    if activation == "relu6" and special != special:
        # PyTorch's derivative there is 0 or 1, depending on the position in memory.
        tensors = case.tensors()
        for place in places:
            tensors["input"][place] = special
        ours, theirs = (case.call(tensors, backend) for backend in ("native", "reference"))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
        return
    _assert_same_specials(case, {"input": places})


@pytest.mark.parametrize("special", [NAN, INF])
def test_specials_in_parameters_and_residual_spread_as_in_pytorch(special: float) -> None:
    case = Case(1, 17, 19, (2, 5, 7), residual="channels_last")
    _assert_same_specials(case, {"weight": {(5, 16, 0, 0, 0): special}})
    _assert_same_specials(case, {"bias": {(18,): special}})
    _assert_same_specials(case, {"residual": {(0, 18, 1, 4, 6): special, (0, 0, 0, 0, 0): -INF}})


@pytest.mark.parametrize("special", [NAN, INF])
def test_specials_in_the_gradient_spread_as_in_pytorch(special: float) -> None:
    case = Case(1, 17, 19, (2, 5, 7))
    results = []
    for backend in ("native", "reference"):
        leaves = case.leaves()
        output = case.call(leaves, backend)
        grad = torch.ones_like(output)
        grad[0, 18, 1, 2, 3] = special
        results.append(torch.autograd.grad(output, list(leaves.values()), grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_specials_stay_in_their_group() -> None:
    case = Case(1, 15, 9, (1, 3, 5), groups=3)
    _assert_same_specials(case, {"input": {(0, 4, 0, 1, 2): NAN, (0, 10, 0, 2, 4): INF}})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_beyond_the_storage_type_become_infinite(
    dtype: torch.dtype, instruction_set: str
) -> None:
    largest = torch.finfo(dtype).max
    x = torch.full((1, 19, 1, 3, 3), largest, dtype=dtype)
    ones = torch.ones(21, 19, 1, 1, 1, dtype=dtype)
    assert pointwise_conv3d(x, ones, backend="native").isposinf().all()
    # Sums are kept in fp32: what overflows on the way and comes back is not lost.
    if dtype == torch.float16:
        ones[:, 1:10] = -1
        assert (pointwise_conv3d(x, ones, backend="native") == largest).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number_survives(dtype: torch.dtype, instruction_set: str) -> None:
    # All 65,536 bit patterns times one: subnormals, infinities, both zeros; NaN stays NaN.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).view(1, 1, 16, 64, 64)
    output = pointwise_conv3d(x, torch.ones(1, 1, 1, 1, 1, dtype=dtype), backend="native")
    torch.testing.assert_close(output, x, rtol=0, atol=0, equal_nan=True)
