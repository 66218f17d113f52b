"""Linear attention from packed projections, against the eager float32 chain of the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch._functorch.config
from exact import check
from plain import linear_attention
from rounds import (
    COMPILED,
    LAYOUTS,
    NCDHW,
    OURS,
    PYTORCH,
    Group,
    gradients,
    inference,
    measure,
    recorded,
)
from torch import Tensor

from evit_kernels import relu_linear_attention_qkv

PEERS = (OURS, *PYTORCH, COMPILED)
CHANNELS = 128  # of b1's third stage
# Gradients of queries and keys are differences of large numbers; float32 leaves this much of them.
FORWARD_TOLERANCE, BACKWARD_TOLERANCE = 1e-5, 1e-4


class Case(NamedTuple):
    """A clip's tokens (T, H, W), and the width of a head."""

    space: tuple[int, int, int]
    head_dim: int

    def __str__(self) -> str:
        tokens = self.space[0] * self.space[1] * self.space[2]
        return f"N{tokens}-d{self.head_dim}"


SPACES = ((8, 7, 7), (8, 14, 14), (8, 28, 28), (16, 28, 28), (16, 56, 56))
CASES = [Case(space, head_dim) for head_dim in (16, 32) for space in SPACES]


@pytest.fixture(scope="module")
def compiled() -> Iterator[Callable[[Tensor, int], Tensor]]:
    """The chain under torch.compile, one program for every number of tokens."""
    torch.compiler.reset()
    # Otherwise a backward pass could run only once, for it would overwrite what forward saved.
    with torch._functorch.config.patch(donated_buffer=False):
        yield torch.compile(linear_attention, dynamic=True)


@pytest.fixture(scope="module", params=CASES, ids=str)
def forward(request: pytest.FixtureRequest, rounds: int, compiled: Callable[..., Tensor]) -> Group:
    """From packed projections to attended features."""
    case: Case = request.param
    peers = _peers(case, compiled)
    calls = {
        name: inference(operator, qkv, case.head_dim) for name, (operator, qkv) in peers.items()
    }
    exact = linear_attention64(peers[OURS][1], case.head_dim)
    check(calls, exact, FORWARD_TOLERANCE, f"attention forward {case}")
    return measure("relu_linear_attention forward", str(case), calls, rounds)


@pytest.fixture(scope="module", params=CASES, ids=str)
def backward(request: pytest.FixtureRequest, rounds: int, compiled: Callable[..., Tensor]) -> Group:
    """The gradient of the packed projections."""
    case: Case = request.param
    peers = _peers(case, compiled)
    gradient = torch.randn(1, CHANNELS, *case.space)
    calls = {}
    for name, (operator, qkv) in peers.items():
        same = gradient.contiguous(memory_format=_layout(name))
        calls[name] = gradients(operator(qkv, case.head_dim), [qkv], same)
    qkv = peers[OURS][1].detach().double().requires_grad_()
    exact = torch.autograd.grad(linear_attention64(qkv, case.head_dim), qkv, gradient.double())
    check(calls, exact, BACKWARD_TOLERANCE, f"attention backward {case}")
    return measure("relu_linear_attention backward", str(case), calls, rounds)


@recorded
@pytest.mark.parametrize("peer", PEERS)
def bench_forward(benchmark: Any, forward: Group, peer: str) -> None:
    forward.report(benchmark, peer)


@recorded
@pytest.mark.parametrize("peer", PEERS)
def bench_backward(benchmark: Any, backward: Group, peer: str) -> None:
    backward.report(benchmark, peer)


def linear_attention64(qkv: Tensor, head_dim: int) -> Tensor:
    """The definition, head by head and in float64: sums over tokens of relu(k) v and relu(k)."""
    heads = qkv.double().unflatten(1, (-1, 3, head_dim)).flatten(4)
    q, k, v = heads[:, :, 0].relu(), heads[:, :, 1].relu(), heads[:, :, 2]
    product = torch.einsum("bhin,bhij->bhjn", q, torch.einsum("bhin,bhjn->bhij", k, v))
    normaliser = torch.einsum("bhin,bhi->bhn", q, k.sum(-1)) + 1e-15
    out: Tensor = (product / normaliser[:, :, None]).flatten(1, 2).unflatten(2, qkv.shape[2:])
    return out


Operator = Callable[[Tensor, int], Tensor]


def _peers(case: Case, compiled: Operator) -> dict[str, tuple[Operator, Tensor]]:
    """Per peer the function, and the packed projections in its layout."""
    numbers = torch.randn(1, 3 * CHANNELS, *case.space)

    def ours(qkv: Tensor, head_dim: int) -> Tensor:
        return relu_linear_attention_qkv(qkv, head_dim, backend="native")

    operators: dict[str, Operator] = {OURS: ours, COMPILED: compiled}
    return {
        name: (
            operators.get(name, linear_attention),
            numbers.contiguous(memory_format=_layout(name)).clone().requires_grad_(),
        )
        for name in PEERS
    }


def _layout(peer: str) -> torch.memory_format:
    # The compiled chain is given what suits the eager one, tokens next to each other.
    return LAYOUTS[NCDHW] if peer == COMPILED else LAYOUTS.get(peer, torch.channels_last_3d)
