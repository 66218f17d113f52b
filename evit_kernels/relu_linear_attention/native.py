"""relu_linear_attention on the compiled core, which reads heads wherever they lie in memory.

All it asks for is that the features of a head are next to each other and that one stride leads from
token to token. Packed channels-last projections are that as they are; other layouts are converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from evit_kernels import _layout
from evit_kernels._native import DTYPES, core, empty

# Heads in memory: the address, and the strides of batch, head and token in elements.
_View = tuple[int, int, int, int]
_ABSENT: _View = (0, 0, 0, 0)


def forward(q: Tensor, k: Tensor, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Attends over (B, heads, N, d) tensors; returns the output and the sums for backward."""
    batch, heads, tokens, width = q.shape
    output = empty(q.shape, q, torch.contiguous_format)
    state = _state(q, heads, width)
    inputs = [_dense_features(x) for x in (q, k, v)]
    views = [*(_heads_view(x) for x in inputs), _heads_view(output)]
    _run("forward", q, (batch, tokens, width), eps, [(heads, views)], state)
    return output, state


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
    batch, heads, tokens, width = q.shape
    inputs = [_dense_features(x) for x in (q, k, v, grad_output)]
    results = [
        torch.empty_like(x) if want else x.new_empty(0)
        for x, want in zip((q, k, v), needed, strict=True)
    ]
    # Written directly where features are next to each other, else next door and copied.
    written = [
        x if not want or x.stride(3) == 1 or width == 1 else x.new_empty(x.shape)
        for x, want in zip(results, needed, strict=True)
    ]
    views = [
        *(_heads_view(x) for x in inputs),
        *(_heads_view(x) if want else _ABSENT for x, want in zip(written, needed, strict=True)),
    ]
    _run("backward", q, (batch, tokens, width), eps, [(heads, views)], state)
    for result, x in zip(results, written, strict=True):
        if result is not x:
            result.copy_(x)
    return results[0], results[1], results[2]


def forward_qkv(qkv: Sequence[Tensor], head_dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """Attends over packed projections, in the memory format of the first."""
    sources = [_rows_of_tokens(x) for x in qkv]
    heads = [x.shape[1] // (3 * head_dim) for x in qkv]
    batch, _, *space = qkv[0].shape
    size = (batch, sum(heads) * head_dim, *space)
    output = empty(size, qkv[0])
    state = _state(qkv[0], sum(heads), head_dim)
    outputs = _split(output, heads, head_dim)
    rows = [
        (count, [*_packed_views(x, head_dim), part])
        for x, count, part in zip(sources, heads, outputs, strict=True)
    ]
    _run("forward", qkv[0], (batch, _tokens(space), head_dim), eps, rows, state)
    return _layout.in_format_of(output, qkv[0]), state


def backward_qkv(
    grad_output: Tensor,
    qkv: Sequence[Tensor],
    state: Tensor,
    head_dim: int,
    eps: float,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Returns the gradients of the packed projections; those not needed are empty."""
    sources = [_rows_of_tokens(x) for x in qkv]
    heads = [x.shape[1] // (3 * head_dim) for x in qkv]
    grad = _rows_of_tokens(grad_output)
    batch, _, *space = qkv[0].shape
    results = [
        empty(x.shape, x) if want else x.new_empty(0) for x, want in zip(qkv, needed, strict=True)
    ]
    rows = []
    for x, count, part, result, want in zip(
        sources, heads, _split(grad, heads, head_dim), results, needed, strict=True
    ):
        grads = _packed_views(result, head_dim) if want else [_ABSENT] * 3
        rows.append((count, [*_packed_views(x, head_dim), part, *grads]))
    _run("backward", qkv[0], (batch, _tokens(space), head_dim), eps, rows, state)
    return [
        _layout.in_format_of(result, x) if want else result
        for x, result, want in zip(qkv, results, needed, strict=True)
    ]


def _run(
    direction: str,
    like: Tensor,
    sizes: tuple[int, int, int],
    eps: float,
    sources: list[tuple[int, list[_View]]],
    state: Tensor,
) -> None:
    if 0 in sizes or not sum(heads for heads, _ in sources):
        # Nothing to attend over; sums of nothing are zero.
        if direction == "forward":
            state.zero_()
        return
    # Per source the heads, then address and strides of every view.
    rows = [(heads, *chain.from_iterable(views)) for heads, views in sources]
    getattr(core(), f"relu_linear_attention_{direction}")(
        DTYPES[like.dtype], torch.get_num_threads(), sizes, eps, rows, state.data_ptr()
    )


def _state(like: Tensor, heads: int, width: int) -> Tensor:
    wide = torch.promote_types(like.dtype, torch.float32)
    return like.new_empty((like.shape[0], heads, width + 1, width), dtype=wide)


def _dense_features(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _heads_view(x: Tensor) -> _View:
    return (x.data_ptr(), x.stride(0), x.stride(1), x.stride(2))


def _tokens(space: Sequence[int]) -> int:
    return space[0] * space[1] * space[2]


def _rows_of_tokens(x: Tensor) -> Tensor:
    """Returns `x`, or a channels-last copy: channels next to each other, one stride over tokens."""
    if x.stride(1) == 1 and _layout.position_stride(x) is not None:
        return x
    return x.contiguous(memory_format=torch.channels_last_3d)


def _split(x: Tensor, heads: Sequence[int], head_dim: int) -> list[_View]:
    """Views of consecutive heads of a tensor of token rows, for each source its own."""
    batch, token = x.stride(0), _layout.position_stride(x) or 0
    address, step = x.data_ptr(), head_dim * x.element_size()
    return [(address + sum(heads[:i]) * step, batch, head_dim, token) for i in range(len(heads))]


def _packed_views(x: Tensor, head_dim: int) -> list[_View]:
    """Views of the queries, keys and values of packed heads."""
    batch, token = x.stride(0), _layout.position_stride(x) or 0
    address, step = x.data_ptr(), head_dim * x.element_size()
    return [(address + part * step, batch, 3 * head_dim, token) for part in range(3)]
