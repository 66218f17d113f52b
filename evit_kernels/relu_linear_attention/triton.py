"""relu_linear_attention as Triton kernels, for GPU machines without a CUDA compiler.

Two passes forward: sums over fixed splits of the tokens, added up in their order, then one product
per token. Backward: one pass over queries, the same addition, one pass over keys and values. Heads
are read and written wherever they lie; the tensors of a call are never concatenated. The kernels
are in triton_kernels.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from evit_kernels import _layout, _triton
from evit_kernels.relu_linear_attention import triton_kernels as kernels

SPLIT = 256  # tokens of one partial sum


class _Heads(NamedTuple):
    """Heads in a tensor: where they begin, and strides of batch, head, token and feature."""

    tensor: Tensor
    start: int
    batch: int
    head: int
    token: int
    feature: int


class _Source(NamedTuple):
    """Heads that lie alike, and their place among all heads of a call."""

    first: int
    heads: int
    views: list[_Heads]


def forward(q: Tensor, k: Tensor, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Attends over (B, heads, N, d) tensors; returns the output and the sums for backward."""
    output = q.new_empty(q.shape)
    source = _Source(0, q.shape[1], [_separate(x) for x in (q, k, v, output)])
    return output, _attend(q, q.shape[2], q.shape[3], q.shape[1], eps, [source])


def backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    eps: float,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of q, k and v; those not needed are empty."""
    grads = [
        torch.empty_like(x) if want else x.new_empty(0)
        for x, want in zip((q, k, v), needed, strict=True)
    ]
    # Kernels that are not to write a gradient still take a tensor in its place.
    written = [g if want else x for g, x, want in zip(grads, (q, k, v), needed, strict=True)]
    views = [_separate(x) for x in (q, k, v, grad_output, *written)]
    source = _Source(0, q.shape[1], views)
    _differentiate(q, q.shape[2], q.shape[3], state, eps, [(source, tuple(needed))])
    return grads[0], grads[1], grads[2]


def forward_qkv(qkv: Sequence[Tensor], head_dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """Attends over packed projections, in the memory format of the first."""
    first = qkv[0]
    counts = [x.shape[1] // (3 * head_dim) for x in qkv]
    heads = sum(counts)
    output = torch.empty(
        (first.shape[0], heads * head_dim, *first.shape[2:]),
        dtype=first.dtype,
        device=first.device,
        memory_format=_layout.format_of(first),
    )
    sources, before = [], 0
    for x, count in zip(qkv, counts, strict=True):
        views = [*_packed(_readable(x), head_dim), _folded(output, head_dim, before)]
        sources.append(_Source(before, count, views))
        before += count
    return output, _attend(first, first.shape[2:].numel(), head_dim, heads, eps, sources)


def backward_qkv(
    grad_output: Tensor,
    qkv: Sequence[Tensor],
    state: Tensor,
    head_dim: int,
    eps: float,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Returns the gradients of the packed projections; those not needed are empty."""
    grad = _readable(grad_output)
    grads, sources, before = [], [], 0
    for x, want in zip(qkv, needed, strict=True):
        grads.append(_layout.empty_like_format(x) if want else x.new_empty(0))
        read = _readable(x)
        views = [
            *_packed(read, head_dim),
            _folded(grad, head_dim, before),
            *_packed(grads[-1] if want else read, head_dim),
        ]
        count = x.shape[1] // (3 * head_dim)
        sources.append((_Source(before, count, views), (want, want, want)))
        before += count
    tokens = qkv[0].shape[2:].numel()
    _differentiate(qkv[0], tokens, head_dim, state, eps, sources)
    return grads


def _attend(
    like: Tensor, tokens: int, width: int, heads: int, eps: float, sources: Sequence[_Source]
) -> Tensor:
    """Writes the output of every source, and returns M with z below it for every head."""
    batch = like.shape[0]
    state = like.new_empty((batch, heads, width + 1, width), dtype=torch.float32)
    if 0 in (tokens, width, batch, heads):
        # Nothing to attend over; sums of nothing are zero.
        return state.zero_()
    splits = triton.cdiv(tokens, SPLIT)
    partials = state.new_empty((splits, *state.shape))
    options = _options(like, width)
    blocks = triton.cdiv(tokens, options["BLOCK"])
    with _triton.on_device(like):
        for source in sources:
            _, k, v, _ = source.views
            programs = splits * batch * source.heads
            if programs:
                kernels.sum_keys[(programs,)](
                    *_flat(k, v), partials, tokens, splits, *_place(source, heads), **options
                )
        _add(partials, state)
        for source in sources:
            q, _, _, output = source.views
            if source.heads:
                kernels.attend[(blocks * batch * source.heads,)](
                    *_flat(q, output), state, tokens, blocks, eps, *_place(source, heads), **options
                )
    return state


def _differentiate(
    like: Tensor,
    tokens: int,
    width: int,
    state: Tensor,
    eps: float,
    sources: Sequence[tuple[_Source, tuple[bool, ...]]],
) -> None:
    """Writes those gradients of every source that are needed."""
    batch, heads = state.shape[:2]
    if 0 in (tokens, width, batch, heads):
        return
    splits = triton.cdiv(tokens, SPLIT)
    partials = state.new_empty((splits, *state.shape))
    totals = torch.empty_like(state)
    options = _options(like, width)
    blocks = triton.cdiv(tokens, options["BLOCK"])
    with _triton.on_device(like):
        for source, needed in sources:
            q, _, _, grad, grad_q, _, _ = source.views
            if source.heads and any(needed):
                kernels.query_gradients[(splits * batch * source.heads,)](
                    *_flat(q, grad, grad_q),
                    *(state, partials, tokens, splits, eps, *_place(source, heads)),
                    WRITE=needed[0],
                    SUMS=needed[1] or needed[2],
                    **options,
                )
        if any(needed[1] or needed[2] for _, needed in sources):
            _add(partials, totals)
        for source, needed in sources:
            _, k, v, _, _, grad_k, grad_v = source.views
            if source.heads and (needed[1] or needed[2]):
                kernels.key_value_gradients[(blocks * batch * source.heads,)](
                    *_flat(k, v, grad_k, grad_v),
                    *(totals, tokens, blocks, *_place(source, heads)),
                    WRITE_K=needed[1],
                    WRITE_V=needed[2],
                    **options,
                )


def _add(partials: Tensor, total: Tensor) -> None:
    entries = total.numel()
    programs = triton.cdiv(entries, _triton.ENTRIES)
    kernels.add_splits[(programs,)](
        *(partials, total, entries, partials.shape[0]), BLOCK=_triton.ENTRIES
    )


def _options(like: Tensor, width: int) -> dict[str, Any]:
    """What kernels are compiled for. Tokens at a time and warps are those that spill nothing."""
    padded = max(16, triton.next_power_of_2(width))
    exact = like.dtype == torch.float32
    return {
        "WIDTH": width,
        "PADDED": padded,
        "BLOCK": 32 if padded == 64 else 64,
        "SPLIT": SPLIT,
        "EXACT": exact,
        "num_warps": 8 if padded == 64 or (padded == 32 and exact) else 4,
    }


def _flat(*views: _Heads) -> list[Any]:
    return [item for view in views for item in view]


def _place(source: _Source, heads: int) -> tuple[int, int, int]:
    return source.first, source.heads, heads


def _separate(x: Tensor) -> _Heads:
    return _Heads(x, 0, *x.stride())


def _readable(x: Tensor) -> Tensor:
    """Returns `x`, or a copy, with one stride over its tokens."""
    if _layout.position_stride(x) is not None:
        return x
    return x.contiguous(memory_format=_layout.format_of(x))


def _packed(x: Tensor, head_dim: int) -> list[_Heads]:
    """Queries, keys and values of packed heads."""
    batch, channel, token = x.stride(0), x.stride(1), _layout.position_stride(x) or 0
    return [
        _Heads(x, part * head_dim * channel, batch, 3 * head_dim * channel, token, channel)
        for part in range(3)
    ]


def _folded(x: Tensor, head_dim: int, before: int) -> _Heads:
    """Heads of an output, those of the sources before left out."""
    batch, channel, token = x.stride(0), x.stride(1), _layout.position_stride(x) or 0
    return _Heads(x, before * head_dim * channel, batch, head_dim * channel, token, channel)
