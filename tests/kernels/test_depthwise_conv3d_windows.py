"""depthwise_conv3d with every kind of window, on calls that are small enough for any backend."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from depthwise_cases import ACTIVATIONS, Case
from placement import randn
from torch import Tensor

from evit_kernels import depthwise_conv3d

# Every temporal padding with steps in time that leave frames over; odd sizes; one frame; taps that
# fall outside; rows that do and do not fill strips of four, forward and in every gradient.
CASES = [
    Case(1, 5, (2, 3, 5), (5, 5, 5), padding=(2, 2, 2), temporal_padding="replicate"),
    Case(1, 9, (5, 6, 6), (3, 3, 3), (3, 1, 2), (4, 4, 4), (2, 1, 1), "replicate"),
    Case(1, 3, (4, 4, 3), (3, 1, 1), (2, 1, 1), temporal_padding="causal"),
    Case(1, 4, (3, 8, 5), (4, 2, 4), (1, 3, 1), (2, 1, 2)),
    Case(1, 6, (1, 7, 7), (3, 3, 3), (2, 2, 2), (1, 1, 1), temporal_padding="causal"),
    Case(1, 2, (3, 13, 9), (1, 7, 7), padding=(0, 3, 3), dilation=(1, 2, 1)),
    Case(1, 4, (2, 9, 8), (1, 3, 3), (1, 2, 2), (0, 2, 2), (1, 2, 2)),
]
LAYOUTS = ("channels_last", "contiguous", "channels_last_slice", "slice", "strided")


def _results(case: Case, tensors: list[Tensor], backend: str) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = case.call(*leaves, backend=backend)
    noise = randn(*output.shape, seed=1).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, noise)]


@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_windows_and_temporal_paddings(case: Case, instruction_set: str) -> None:
    case = replace(case, layout=LAYOUTS[CASES.index(case) % len(LAYOUTS)], activation="silu")
    tensors = [x for x in case.tensors() if x is not None]
    ours = _results(case, tensors, "native")
    theirs = _results(case, tensors, "reference")
    exact = _results(case, [x.double() for x in tensors], "reference")
    for i, values in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_accurate(*values, BACKWARD if i else FORWARD, f"result {i}")
    dense = case.layout in ("channels_last", "contiguous")
    assert not dense or ours[1].stride() == tensors[0].stride()


def test_each_gradient_alone(instruction_set: str) -> None:
    case = Case(1, 3, (1, 5, 3), (1, 3, 3), padding=(0, 1, 1))
    tensors = [x for x in case.tensors() if x is not None]
    together = _results(case, tensors, "native")
    for i in range(3):
        leaves = [x.detach().requires_grad_(i == j) for j, x in enumerate(tensors)]
        output = case.call(*leaves, backend="native")
        output.backward(randn(*output.shape, seed=1).to(output))
        assert torch.equal(leaves[i].grad, together[i + 1])


def test_unused_rows_do_not_reach_the_weight_gradient(instruction_set: str) -> None:
    # The last row is behind the last window: NaN there is nobody's business.
    x, weight, _ = Case(1, 3, (1, 6, 5), (1, 3, 3), (1, 2, 2)).tensors()
    x[..., 5, :] = torch.nan
    weight.requires_grad_()
    output = depthwise_conv3d(x, weight, stride=(1, 2, 2), backend="native")
    output.sum().backward()
    assert output.isfinite().all()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden(activation: str | None, instruction_set: str) -> None:
    x = torch.randn(1, 4, 1, 3, 3)
    x[0, 2, 0, 1, 1] = torch.nan
    y = depthwise_conv3d(x, torch.ones(4, 1, 1, 1, 1), activation=activation, backend="native")
    assert torch.equal(y.isnan(), x.isnan())


def test_compiles_in_one_graph_forward_and_backward() -> None:
    def network(x: Tensor, weight: Tensor) -> Tensor:
        y = depthwise_conv3d(x, weight, padding=(0, 1, 1), activation="gelu", backend="native")
        return y.sin()

    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, network):
        leaves = [randn(1, 12, 1, 4, 4, seed=3).float(), randn(12, 1, 1, 3, 3, seed=4).float()]
        leaves = [x.requires_grad_() for x in leaves]
        output = function(*leaves)
        results.append([output, *torch.autograd.grad(output.sum(), leaves)])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)
