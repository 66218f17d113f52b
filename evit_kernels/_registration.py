"""How operators are registered with torch: one library, one boundary, no double backward."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# A module-level object: the registrations live as long as it does.
_LIBRARY = torch.library.Library("evit", "DEF")


class Backends(dict[str, Any]):
    """The modules that serve an operator, by the names of their backends.

    That of Triton is imported when a call first needs it: importing us never imports Triton.
    """

    def __init__(self, folder: str, **modules: Any) -> None:
        super().__init__(modules)
        self._folder = folder

    def __missing__(self, name: str) -> Any:
        if name != "triton":
            raise KeyError(name)
        self[name] = importlib.import_module(f"{self._folder}.triton")
        return self[name]


def define(schema: str) -> None:
    """Declares an operator of the namespace `evit` by its schema."""
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


def implement(name: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Gives a declared operator its implementation and its fake; returns the overload to call."""
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"evit::{name}", fake, lib=_LIBRARY)
    # Looked up once: attribute access on torch.ops costs a microsecond at every call.
    return getattr(torch.ops.evit, name).default


def needs_autograd(*tensors: Tensor | None) -> bool:
    """Tells whether a call has to be recorded for backward.

    Forward-mode differentiation counts too: autograd then says that it is not implemented, where a
    bare operator would answer with a tangent of zero.
    """
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def distinct(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gives a tensor that is passed again a view of its own.

    torch.compile refuses, and older versions differentiate wrongly, an autograd.Function that gets
    the same tensor twice.
    """
    result: list[Tensor | None] = []
    for position, value in enumerate(tensors):
        repeated = value is not None and any(value is other for other in tensors[:position])
        result.append(value.view_as(value) if value is not None and repeated else value)
    return tuple(result)


def call_backward(name: str, backward: Any, *arguments: Any) -> tuple[Tensor, ...]:
    """Calls a registered backward, whose result refuses to be differentiated again."""
    if torch.is_grad_enabled() and needs_autograd(*(a for a in arguments if isinstance(a, Tensor))):
        result: tuple[Tensor, ...] = _Once.apply(name, backward, *arguments)
        return result
    return backward(*arguments)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, backward: Any, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.name = name
        return backward(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"{ctx.name}: a second derivative is not implemented by the fused kernels; "
            'use backend="reference" where create_graph=True is needed'
        )
