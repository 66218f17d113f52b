"""Derivatives of pointwise_conv3d: gradcheck, which gradients are computed, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from depthwise_cases import ACTIVATIONS
from pointwise_cases import Case
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evit_kernels import _calls, _native, pointwise_conv3d
from evit_kernels.pointwise_conv3d import native

FULL = Case(1, 12, 16, (2, 4, 5), activation="gelu", residual="channels_last")


def _gradcheck(case: Case, **options: Any) -> bool:
    leaves = case.leaves()

    def call(*values: Tensor) -> Tensor:
        return case.call(dict(zip(leaves, values, strict=True)), "native")

    return torch.autograd.gradcheck(call, tuple(leaves.values()), **options)


@pytest.mark.parametrize("residual", [None, "contiguous"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_activations(activation: str | None, residual: str | None) -> None:
    case = Case(2, 3, 4, (2, 1, 3), activation, residual=residual, dtype=torch.float64)
    assert _gradcheck(case, fast_mode=True)


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 1, 3, (1, 2, 2), dtype=torch.float64),
        Case(1, 3, 1, (2, 2, 1), layout="slice", dtype=torch.float64),
        Case(1, 6, 4, (1, 2, 2), bias=False, groups=2, dtype=torch.float64),
        Case(1, 2, 2, (1, 1, 1), layout="permuted", residual="strided", dtype=torch.float64),
    ],
    ids=Case.label,
)
def test_gradcheck_of_shapes(case: Case) -> None:
    assert _gradcheck(case)


class _Spy:
    """The core, with a note of which gradients its backward was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(_native.core(), name)

    def pointwise_conv3d_backward(self, *arguments: Any) -> Any:
        self.asked.append(tuple(address != 0 for address in arguments[-3:]))
        return _native.core().pointwise_conv3d_backward(*arguments)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("needed", range(16))
def test_no_gradient_that_nobody_asked_for(
    needed: int, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = _Spy()
    monkeypatch.setattr(native, "core", lambda: spy)
    _calls.forget()  # they may have been prepared for the core itself
    case = Case(1, 12, 16, (2, 3, 3), activation, residual="channels_last")
    wanted = [bool(needed >> bit & 1) for bit in range(4)]
    results = []
    for backend in ("native", "reference"):
        leaves = case.leaves()
        for leaf, want in zip(leaves.values(), wanted, strict=True):
            leaf.requires_grad_(want)
        output = case.call(leaves, backend)
        assert output.requires_grad == any(wanted)
        if any(wanted):
            output.square().sum().backward()
        results.append([leaf.grad for leaf in leaves.values()])
    # The residual's gradient is the output's: nothing has to be computed for it.
    assert spy.asked == ([tuple(wanted[:3])] if any(wanted[:3]) else [])
    for ours, theirs, want in zip(*results, wanted, strict=True):
        assert (ours is not None) == want
        if want:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_graph_without_grad_mode() -> None:
    leaves = FULL.leaves()
    with torch.no_grad():
        assert not FULL.call(leaves, "native").requires_grad
    with torch.inference_mode():
        assert FULL.call(leaves, "native").is_inference()


def test_second_derivative_is_refused_with_advice() -> None:
    leaves = FULL.leaves()
    output = FULL.call(leaves, "native").sum()
    first = torch.autograd.grad(output, list(leaves.values()), create_graph=True)
    with pytest.raises(RuntimeError, match=r"pointwise_conv3d: a second derivative.*reference"):
        first[0].square().sum().backward()


def test_create_graph_alone_works() -> None:
    leaves = FULL.leaves()
    results = [
        torch.autograd.grad(
            FULL.call(leaves, "native").sum(), list(leaves.values()), create_graph=keep
        )
        for keep in (True, False)
    ]
    for once, again in zip(*results, strict=True):
        assert torch.equal(once, again)


def test_reference_has_second_derivatives() -> None:
    case = Case(1, 2, 3, (1, 2, 2), "silu", residual="contiguous", dtype=torch.float64)
    leaves = case.leaves()

    def call(*values: Tensor) -> Tensor:
        return case.call(dict(zip(leaves, values, strict=True)), "reference")

    assert torch.autograd.gradgradcheck(call, tuple(leaves.values()), fast_mode=True)


def test_forward_mode_is_refused_rather_than_zero() -> None:
    x, weight = torch.randn(1, 8, 3, 4, 4), torch.randn(6, 8, 1, 1, 1)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError):
            pointwise_conv3d(dual, weight, backend="native")


def test_saved_tensors_changed_in_place_are_noticed() -> None:
    leaves = FULL.leaves()
    scaled = leaves["input"] * 2
    output = FULL.call({**leaves, "input": scaled}, "native")
    scaled.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_residual_may_change_in_place_afterwards() -> None:
    # It is not saved: an activation in place on the sum's other user is none of our business.
    leaves = FULL.leaves()
    residual = leaves["residual"] * 1
    output = FULL.call({**leaves, "residual": residual}, "native")
    residual.mul_(2)
    output.sum().backward()
    assert torch.equal(leaves["residual"].grad, torch.ones_like(output))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_input_as_its_own_residual(layout: str) -> None:
    gradients = []
    for backend in ("native", "reference"):
        case = Case(1, 12, 12, (2, 3, 4), activation="hardswish", layout=layout)
        leaves = case.leaves()
        output = case.call({**leaves, "residual": leaves["input"]}, backend)
        gradients.append(torch.autograd.grad(output.square().sum(), list(leaves.values())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_tensor_as_input_and_weight() -> None:
    gradients = []
    for backend in ("native", "reference"):
        torch.manual_seed(3)
        x = torch.randn(4, 4, 1, 1, 1, requires_grad=True)
        output = pointwise_conv3d(x, x, residual=x, activation="silu", backend=backend)
        gradients.append(torch.autograd.grad(output.square().sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_under_activation_checkpointing(use_reentrant: bool) -> None:
    plain, saved = FULL.leaves(), FULL.leaves()
    FULL.call(plain, "native").sum().backward()

    def call(*values: Tensor) -> Tensor:
        return FULL.call(dict(zip(saved, values, strict=True)), "native")

    checkpoint(call, *saved.values(), use_reentrant=use_reentrant).sum().backward()
    for name, leaf in plain.items():
        assert torch.equal(leaf.grad, saved[name].grad), name


def test_without_output_channels_gradients_keep_the_memory_format() -> None:
    case = Case(1, 8, 6, (2, 3, 3))
    leaves = case.leaves()
    leaves["weight"] = torch.empty(0, 8, 1, 1, 1, requires_grad=True)
    leaves["bias"] = torch.empty(0, requires_grad=True)
    output = case.call(leaves, "native")
    grad = torch.autograd.grad(output.sum(), leaves["input"])[0]
    assert grad.stride() == leaves["input"].stride()
    assert not grad.any()


def _saved_products(output: Tensor) -> list[str]:
    """The fused activations with which the convolutions before an output were recorded."""
    node, found = output.grad_fn, []
    while node is not None:
        if type(node).__name__ == "_PointwiseConv3dBackward":
            found.append(node.arguments[0])
        node = node.next_functions[0][0] if node.next_functions else None
    return found


@pytest.mark.parametrize(
    ("activation", "dtype", "residual", "fused"),
    [
        ("hardswish", torch.float32, None, "none"),
        ("relu", torch.float64, None, "none"),
        ("relu6", torch.float32, None, "none"),
        ("hardswish", torch.bfloat16, None, "hardswish"),
        ("hardswish", torch.float32, "channels_last", "hardswish"),
        ("silu", torch.float32, None, "none"),
    ],
)
def test_what_an_activation_read_is_kept_where_nothing_rounds_it(
    activation: str, dtype: torch.dtype, residual: str | None, fused: str
) -> None:
    case = Case(2, 12, 16, (2, 4, 5), activation, residual=residual, dtype=dtype)
    leaves = case.leaves()
    for _ in range(2):  # a first call, and a known one
        assert _saved_products(case.call(leaves, "native")) == [fused]
    with torch.no_grad():
        inferred = case.call(leaves, "native")
    assert torch.equal(case.call(leaves, "native"), inferred)


def test_both_ways_to_undo_an_activation_agree() -> None:
    case = Case(2, 12, 16, (2, 4, 5), "hardswish", residual="channels_last")
    leaves = case.leaves()
    with_residual = case.call(
        {**leaves, "residual": torch.zeros_like(leaves["residual"])}, "native"
    )
    alone = {name: leaf for name, leaf in leaves.items() if name != "residual"}
    without = replace(case, residual=None).call(alone, "native")
    torch.testing.assert_close(without, with_residual)
    gradient = torch.randn_like(without)
    for got, expected in zip(
        torch.autograd.grad(without, list(alone.values()), gradient),
        torch.autograd.grad(with_residual, list(alone.values()), gradient),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
