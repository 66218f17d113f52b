"""Registration of relu_linear_attention with torch: schemas, fake implementations, derivative.

Two operators on one core: `relu_linear_attention` for separate q, k and v, and
`relu_linear_attention_qkv` for packed projections. Both also return the sums that backward needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evit_kernels import _calls, _layout, _registration
from evit_kernels.relu_linear_attention import native

NAME = "relu_linear_attention"

_registration.define(
    "relu_linear_attention(Tensor q, Tensor k, Tensor v, float eps, str backend) "
    "-> (Tensor, Tensor)"
)
_registration.define(
    "relu_linear_attention_backward(Tensor grad_output, Tensor q, Tensor k, Tensor v, "
    "Tensor state, float eps, str backend, bool[3] needed) -> (Tensor, Tensor, Tensor)"
)
_registration.define(
    "relu_linear_attention_qkv(Tensor[] qkv, int head_dim, float eps, str backend) "
    "-> (Tensor, Tensor)"
)
_registration.define(
    "relu_linear_attention_qkv_backward(Tensor grad_output, Tensor[] qkv, Tensor state, "
    "int head_dim, float eps, str backend, bool[] needed) -> Tensor[]"
)

BACKENDS = _registration.Backends(__package__, native=native)
_GRADIENTS = _calls.Calls()


def relu_linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float, backend: str) -> Tensor:
    """Calls the registered operator, through autograd where a gradient is wanted."""
    if _registration.needs_autograd(q, k, v):
        apply: Any = _Attention.apply
        result: Tensor = apply(*_registration.distinct(q, k, v), eps, backend)
        return result
    output: Tensor = _forward(q, k, v, eps, backend)[0]
    return output


def relu_linear_attention_qkv(
    qkv: Sequence[Tensor], head_dim: int, eps: float, backend: str, direct: _calls.Direct
) -> Tensor:
    """Calls the operator for packed projections, through autograd where wanted.

    `direct`, where there is one, instead of the registered one below autograd.
    """
    if _registration.needs_autograd(*qkv):
        apply: Any = _PackedAttention.apply
        result: Tensor = apply(head_dim, eps, backend, direct, *_registration.distinct(*qkv))
        return result
    output: Tensor = _forward_qkv(list(qkv), head_dim, eps, backend)[0]
    return output


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, eps: float, backend: str) -> Tensor:
        output, state = _forward(q, k, v, eps, backend)
        ctx.save_for_backward(q, k, v, state)
        ctx.arguments = (eps, backend)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[:3])
        grads = _registration.call_backward(
            NAME, _backward, grad_output, *ctx.saved_tensors, *ctx.arguments, needed
        )
        return (*_wanted(grads, needed), None, None)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head_dim: int, eps: float, backend: str, direct: _calls.Direct, *qkv: Tensor
    ) -> Tensor:
        if direct is None:
            output, state = _forward_qkv(list(qkv), head_dim, eps, backend)
        else:
            state = _empty_state(qkv[0], _packed_heads(qkv, head_dim), head_dim)
            output = direct(*qkv, state=state)
        ctx.save_for_backward(state, *qkv)
        ctx.arguments = (head_dim, eps, backend)
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        state, *qkv = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[4:])
        grads = _registration.call_backward(
            NAME, _backward_unpacked, needed, *ctx.arguments, grad_output, state, *qkv
        )
        return (None, None, None, None, *_wanted(grads, needed))


def _wanted(grads: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    return [g if want else None for g, want in zip(grads, needed, strict=True)]


def _backward_unpacked(
    needed: list[bool],
    head_dim: int,
    eps: float,
    backend: str,
    grad_output: Tensor,
    state: Tensor,
    *qkv: Tensor,
) -> tuple[Tensor, ...]:
    call = _GRADIENTS.direct_backward(
        BACKENDS, backend, (grad_output, state, *qkv), (head_dim, eps, tuple(needed))
    )
    if call is not None:
        return tuple(call(grad_output, state, *qkv))
    # Autograd sees tensors only when they are arguments of their own, never inside a list.
    return tuple(_backward_qkv(grad_output, qkv, state, head_dim, eps, backend, needed))


def _forward_impl(
    q: Tensor, k: Tensor, v: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = BACKENDS[backend].forward(q, k, v, eps)
    return result


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), _empty_state(q, q.shape[1], q.shape[3])


def _backward_impl(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    eps: float,
    backend: str,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = BACKENDS[backend].backward(
        grad_output, q, k, v, state, eps, needed
    )
    return result


def _backward_fake(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    eps: float,
    backend: str,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(x) if want else x.new_empty(0)
        for x, want in zip((q, k, v), needed, strict=True)
    )


def _forward_qkv_impl(
    qkv: list[Tensor], head_dim: int, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = BACKENDS[backend].forward_qkv(qkv, head_dim, eps)
    return result


def _forward_qkv_fake(
    qkv: list[Tensor], head_dim: int, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    heads = _packed_heads(qkv, head_dim)
    first = qkv[0]
    output = torch.empty(
        (first.shape[0], heads * head_dim, *first.shape[2:]),
        dtype=first.dtype,
        device=first.device,
        memory_format=_layout.format_of(first),
    )
    return output, _empty_state(first, heads, head_dim)


def _backward_qkv_impl(
    grad_output: Tensor,
    qkv: list[Tensor],
    state: Tensor,
    head_dim: int,
    eps: float,
    backend: str,
    needed: list[bool],
) -> list[Tensor]:
    result: list[Tensor] = BACKENDS[backend].backward_qkv(
        grad_output, qkv, state, head_dim, eps, needed
    )
    return result


def _backward_qkv_fake(
    grad_output: Tensor,
    qkv: list[Tensor],
    state: Tensor,
    head_dim: int,
    eps: float,
    backend: str,
    needed: list[bool],
) -> list[Tensor]:
    return [
        _layout.empty_like_format(x) if want else x.new_empty(0)
        for x, want in zip(qkv, needed, strict=True)
    ]


def _packed_heads(qkv: Sequence[Tensor], head_dim: int) -> int:
    return sum(x.shape[1] // (3 * head_dim) for x in qkv)


def _empty_state(like: Tensor, heads: int | torch.SymInt, width: int | torch.SymInt) -> Tensor:
    wide = torch.promote_types(like.dtype, torch.float32)
    return like.new_empty((like.shape[0], heads, width + 1, width), dtype=wide)


_forward = _registration.implement(NAME, _forward_impl, _forward_fake)
_backward = _registration.implement(f"{NAME}_backward", _backward_impl, _backward_fake)
_forward_qkv = _registration.implement(f"{NAME}_qkv", _forward_qkv_impl, _forward_qkv_fake)
_backward_qkv = _registration.implement(
    f"{NAME}_qkv_backward", _backward_qkv_impl, _backward_qkv_fake
)
