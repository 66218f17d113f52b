"""Derivatives of depthwise_conv3d: gradcheck, which gradients are computed, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from depthwise_cases import ACTIVATIONS, Case
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evit_kernels import _calls, _native, depthwise_conv3d
from evit_kernels.depthwise_conv3d import native
from evit_kernels.depthwise_conv3d.geometry import TEMPORAL_PADDINGS


def _leaves(case: Case) -> list[Tensor]:
    return [x.requires_grad_() for x in case.tensors() if x is not None]


@pytest.mark.parametrize("temporal_padding", TEMPORAL_PADDINGS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_activations(activation: str | None, temporal_padding: str) -> None:
    case = Case(
        1,
        2,
        (2, 3, 4),
        (3, 3, 3),
        padding=(1, 1, 1),
        activation=activation,
        temporal_padding=temporal_padding,
        dtype=torch.float64,
    )
    assert torch.autograd.gradcheck(
        lambda x, w, b: case.call(x, w, b, "native"), _leaves(case), fast_mode=True
    )


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 2, (2, 4, 3), (3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1)),
        Case(1, 2, (3, 4, 5), (2, 3, 4), stride=(1, 3, 2), padding=(2, 1, 3), dilation=(2, 1, 1)),
        Case(1, 2, (2, 3, 5), (5, 1, 5), padding=(4, 0, 2), temporal_padding="replicate"),
        Case(1, 3, (4, 3, 3), (3, 1, 1), stride=(2, 1, 1), temporal_padding="causal"),
        Case(1, 2, (1, 7, 7), (1, 7, 7), layout="slice"),
    ],
    ids=Case.label,
)
def test_gradcheck_of_windows(case: Case, instruction_set: str) -> None:
    case = replace(case, dtype=torch.float64, activation="silu")
    assert torch.autograd.gradcheck(lambda x, w, b: case.call(x, w, b, "native"), _leaves(case))


class _Spy:
    """The core, with a note of which gradients its backward was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(_native.core(), name)

    def depthwise_conv3d_backward(self, *arguments: Any) -> Any:
        self.asked.append(tuple(address != 0 for address in arguments[-3:]))
        return _native.core().depthwise_conv3d_backward(*arguments)


@pytest.mark.on_cpu("the spy sits on the compiled core")
@pytest.mark.parametrize("needed", [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
def test_no_gradient_that_nobody_asked_for(
    needed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = _Spy()
    monkeypatch.setattr(native, "core", lambda: spy)
    _calls.forget()  # they may have been prepared for the core itself
    case = Case(1, 16, (2, 5, 5), (3, 3, 3), padding=(1, 1, 1), activation="relu")
    leaves = [x for x in case.tensors() if x is not None]
    for leaf, want in zip(leaves, needed, strict=True):
        leaf.requires_grad_(bool(want))
    output = case.call(*leaves, "native")
    if not any(needed):
        assert not output.requires_grad
        return
    expected = _gradients_by_pytorch(case, leaves)
    output.sum().backward()
    assert spy.asked == [tuple(bool(want) for want in needed)]
    for leaf, true in zip(leaves, expected, strict=True):
        if true is None:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, true, rtol=1e-4, atol=1e-5)


def _gradients_by_pytorch(case: Case, leaves: list[Tensor]) -> list[Tensor | None]:
    copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in leaves]
    case.call(*copies, "reference").sum().backward()
    return [x.grad for x in copies]


def test_no_graph_without_grad_mode() -> None:
    case = Case(1, 8, (3, 4, 4), (3, 3, 1))
    leaves = _leaves(case)
    with torch.no_grad():
        assert not case.call(*leaves, "native").requires_grad
    with torch.inference_mode():
        assert case.call(*leaves, "native").is_inference()


def test_second_derivative_is_refused_with_advice() -> None:
    case = Case(1, 8, (3, 4, 4), (3, 3, 3), activation="gelu")
    leaves = _leaves(case)
    first = torch.autograd.grad(case.call(*leaves, "native").sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=r"depthwise_conv3d: a second derivative.*reference"):
        first[0].square().sum().backward()


def test_create_graph_alone_works() -> None:
    case = Case(1, 8, (3, 4, 4), (3, 3, 3), activation="gelu")
    leaves = _leaves(case)
    kept = torch.autograd.grad(case.call(*leaves, "native").sum(), leaves, create_graph=True)
    plain = torch.autograd.grad(case.call(*leaves, "native").sum(), leaves)
    for once, again in zip(kept, plain, strict=True):
        assert torch.equal(once, again)


def test_reference_has_second_derivatives() -> None:
    case = Case(1, 2, (2, 3, 3), (2, 2, 2), activation="silu", dtype=torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x, w, b: case.call(x, w, b, "reference"), _leaves(case), fast_mode=True
    )


def test_forward_mode_is_refused_rather_than_zero() -> None:
    x, weight = torch.randn(1, 8, 3, 4, 4), torch.randn(8, 1, 3, 3, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError):
            depthwise_conv3d(dual, weight, backend="native")


def test_saved_tensors_changed_in_place_are_noticed() -> None:
    case = Case(1, 8, (3, 4, 4), (3, 3, 3))
    input, weight, bias = _leaves(case)
    scaled = input * 2
    output = case.call(scaled, weight, bias, "native")
    scaled.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_one_tensor_as_input_and_weight() -> None:
    gradients = []
    for backend in ("native", "reference"):
        torch.manual_seed(3)
        x = torch.randn(1, 1, 3, 3, 3, requires_grad=True)
        output = depthwise_conv3d(x, x, padding=1, activation="hardswish", backend=backend)
        gradients.append(torch.autograd.grad(output.sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_under_activation_checkpointing(use_reentrant: bool) -> None:
    case = Case(1, 16, (3, 5, 5), (3, 3, 3), activation="hardswish")
    plain, saved = _leaves(case), _leaves(case)
    case.call(*plain, "native").sum().backward()
    output = checkpoint(case.call, *saved, "native", use_reentrant=use_reentrant)
    output.sum().backward()
    for x, y in zip(plain, saved, strict=True):
        assert torch.equal(x.grad, y.grad)
