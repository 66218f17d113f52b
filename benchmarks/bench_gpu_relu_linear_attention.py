"""Linear attention on a GPU over the two scales that b1 and b3 attend over, and its gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from gpu_cases import Case, attention_cases
from gpu_options import GPU_OPTIONS, GpuRun
from gpu_peers import Function, operator_group, peers_of
from plain import linear_attention
from rounds import Group, recorded
from shapes import AttentionShape
from torch import Tensor

from evit_kernels import relu_linear_attention_qkv

OPERATOR = "relu_linear_attention"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    options = metafunc.config.stash[GPU_OPTIONS]
    metafunc.parametrize("peer", options.chosen(peers_of(OPERATOR, options.device)))
    cases = attention_cases(options.shapes)
    metafunc.parametrize("case", cases, ids=str, indirect=True, scope="module")


@pytest.fixture(scope="module")
def forward(case: Case, gpu_run: GpuRun) -> Group:
    """From packed projections of all scales to attended features."""
    return _group("gpu relu_linear_attention forward", case, gpu_run, backward=False)


@pytest.fixture(scope="module")
def backward(case: Case, gpu_run: GpuRun) -> Group:
    """The gradients of the packed projections."""
    return _group("gpu relu_linear_attention backward", case, gpu_run, backward=True)


@recorded
def bench_forward(benchmark: Any, forward: Group, peer: str) -> None:
    forward.report(benchmark, peer)


@recorded
def bench_backward(benchmark: Any, backward: Group, peer: str) -> None:
    backward.report(benchmark, peer)


def _group(row: str, case: Case, run: GpuRun, *, backward: bool) -> Group:
    shape = case.shape
    assert isinstance(shape, AttentionShape)

    def numbers() -> list[Tensor]:
        return [torch.randn(s, dtype=case.dtype, device=run.device) for s in shape.sources]

    def ours(backend: str) -> Function:
        return lambda *sources: relu_linear_attention_qkv(sources, shape.head_dim, backend=backend)

    def theirs(*sources: Tensor) -> Tensor:
        chain = _in_float64 if sources[0].dtype == torch.float64 else linear_attention
        return chain(torch.cat(sources, 1), shape.head_dim)

    packed = sum(torch.Size(size).numel() for size in shape.sources)
    return operator_group(
        row,
        case,
        run.peers(peers_of(OPERATOR, run.device.type)),
        run.device,
        run.rounds,
        numbers,
        ours,
        theirs,
        tuple(range(len(shape.sources))) if backward else (),
        # Forward reads q, k, v and writes one of their size; backward reads four, writes three.
        nbytes=case.dtype.itemsize * packed * (7 if backward else 4) // 3,
    )


_in_float64 = partial(linear_attention, wide=torch.float64)
