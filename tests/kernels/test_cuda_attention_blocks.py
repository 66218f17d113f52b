"""The CUDA kernels of linear attention that work in blocks, emulated: shapes and types.

The tests of the operator run on them too, as far as their widths and layouts are those of blocks.
Whatever runs them also looks for threads that share memory without a barrier.
"""

from __future__ import annotations

from collections.abc import Iterator

import emulation
import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from test_relu_linear_attention import DTYPES, attend, results
from torch import Tensor

from evit_kernels import relu_linear_attention

WIDTHS = (8, 16, 32, 64)
LAST = torch.channels_last_3d


@pytest.fixture
def emulated() -> Iterator[None]:
    with emulation.in_use():
        yield


def packed(head_dim: int, heads: int, size: tuple[int, int, int], batch: int = 1) -> Tensor:
    return torch.randn(batch, heads * 3 * head_dim, *size).contiguous(memory_format=LAST)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", WIDTHS)
# One token; less than a tile; exactly a tile; a tile and a bit; several chunks with a bit.
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 3, 7), (1, 8, 8), (1, 5, 13), (3, 9, 13)], ids=str)
def test_any_number_of_tokens(
    size: tuple[int, int, int], head_dim: int, dtype: torch.dtype, emulated: None
) -> None:
    inputs = [packed(head_dim, heads, size, batch=2).to(dtype) for heads in (1, 2)]
    ours = results(attend(head_dim, "native"), inputs)
    theirs = results(attend(head_dim, "reference"), inputs)
    exact = results(attend(head_dim, "reference"), [x.double() for x in inputs])
    for i, values in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_accurate(*values, BACKWARD if i else FORWARD, f"result {i}")


@pytest.mark.parametrize("sources", [1, 3, 4, 5])
def test_any_number_of_sources(sources: int, emulated: None) -> None:
    # More than four are served by the kernels for everything else.
    inputs = [packed(16, 1 + i % 2, (2, 3, 5)) for i in range(sources)]
    ours = results(attend(16, "native"), inputs)
    for got, wanted in zip(ours, results(attend(16, "reference"), inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wanted", range(1, 7))
def test_gradients_that_nobody_asked_for(wanted: int, emulated: None) -> None:
    tensors = [torch.randn(2, 3, 70, 16) for _ in range(3)]
    which = [i for i in range(3) if wanted & 1 << i]
    gradients = []
    for backend in ("native", "reference"):
        leaves = [x.clone().requires_grad_(i in which) for i, x in enumerate(tensors)]
        output = relu_linear_attention(*leaves, backend=backend)
        noise = torch.linspace(-1, 1, output.numel()).view_as(output)
        gradients.append(torch.autograd.grad(output, [leaves[i] for i in which], noise))
    for got, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 4, 8])
def test_addresses_that_are_not_multiples_of_a_vector(
    offset: int, dtype: torch.dtype, emulated: None
) -> None:
    memory = torch.randn(offset + 2 * 40 * 3 * 16).to(dtype)
    whole = memory[offset:].view(1, 40, 2, 3, 16).permute(3, 0, 2, 1, 4)
    inputs = list(whole.unbind())
    ours = relu_linear_attention(*inputs, backend="native")
    theirs = relu_linear_attention(*inputs, backend="reference")
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_special_values_come_out_as_in_pytorch(
    which: int, special: float, dtype: torch.dtype, emulated: None
) -> None:
    inputs = [torch.randn(1, 2, 70, 16).to(dtype) for _ in range(3)]
    inputs[which][0, 1, 3, 2] = special
    ours = relu_linear_attention(*inputs, backend="native")
    theirs = relu_linear_attention(*inputs, backend="reference")
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_beyond_half_precision(dtype: torch.dtype, emulated: None) -> None:
    # Of positive entries near 100 the sums leave the range of float16, the result does not.
    inputs = [x.abs() * 50 + 75 for x in (packed(32, 1, (4, 12, 12)),)]
    inputs = [x.to(dtype) for x in inputs]
    ours = results(attend(32, "native"), inputs)
    theirs = results(attend(32, "reference"), inputs)
    exact = results(attend(32, "reference"), [x.double() for x in inputs])
    for i, values in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_accurate(*values, BACKWARD if i else FORWARD, f"result {i}")
