"""relu_linear_attention on the compiled core, which reads heads wherever they lie in memory.

All it asks for is that the features of a head are next to each other and that one stride leads from
token to token. Packed channels-last projections are that as they are; other layouts are converted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from evit_kernels import _layout, _native
from evit_kernels._memory import empty, is_memory, new, new_dense
from evit_kernels._native import DTYPES, core

# Heads in a tensor: at how many elements they begin, and the strides of batch, head and token.
_View = tuple[int, int, int, int]
_ABSENT: _View = (0, 0, 0, 0)
_Row = tuple[int, list[_View]]  # heads of a source, and its views


def forward(q: Tensor, k: Tensor, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Attends over (B, heads, N, d) tensors; returns the output and the sums for backward."""
    batch, heads, tokens, width = q.shape
    output = empty(q.shape, q, torch.contiguous_format, kept=True)
    state = _state(q, heads, width)
    inputs = [_dense_features(x) for x in (q, k, v)]
    tensors = [*inputs, output]
    rows = [(heads, [_heads_view(x) for x in tensors])]
    _run("forward", q, (batch, tokens, width), eps, rows, tensors, state)
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
    tensors = [
        *inputs,
        *(x if want else None for x, want in zip(written, needed, strict=True)),
    ]
    rows = [(heads, [_ABSENT if x is None else _heads_view(x) for x in tensors])]
    _run("backward", q, (batch, tokens, width), eps, rows, tensors, state)
    for result, x in zip(results, written, strict=True):
        if result is not x:
            result.copy_(x)
    return results[0], results[1], results[2]


def forward_qkv(qkv: Sequence[Tensor], head_dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """Attends over packed projections, in the memory format of the first."""
    sources = [_rows_of_tokens(x) for x in qkv]
    output = empty(_output_size(qkv, head_dim), qkv[0], kept=True)
    state = _state(qkv[0], output.shape[1] // head_dim, head_dim)
    rows = _packed_rows(sources, output, head_dim)
    tensors = [tensor for x in sources for tensor in (x, x, x, output)]
    _run("forward", qkv[0], _packed_sizes(qkv[0], head_dim), eps, rows, tensors, state)
    return _layout.in_format_of(output, qkv[0], kept=True), state


def direct(qkv: Sequence[Tensor], head_dim: int, eps: float) -> Callable[..., Tensor] | None:
    """Returns what computes calls like this one past the dispatcher, None if they need copies.

    It takes the tensors, and `state` for the sums where they are wanted.
    """
    first = qkv[0]
    if not is_memory(*qkv) or not _layout.is_channels_last(first):
        return None
    if any(_rows_of_tokens(x) is not x for x in qkv):
        return None
    new_output = new(_output_size(qkv, head_dim), first.dtype, kept=True)
    rows = _packed_rows(qkv, new_output(), head_dim)
    problem = _problem(first, _packed_sizes(first, head_dim), eps, rows)
    prepared = core().relu_linear_attention_prepared
    call: Callable[..., Tensor] = prepared(problem, new_output, len(qkv))
    return call


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
    grad = _rows_of_tokens(grad_output)
    results = [
        empty(x.shape, x) if want else x.new_empty(0) for x, want in zip(qkv, needed, strict=True)
    ]
    rows = _packed_rows(sources, grad, head_dim)
    tensors: list[Tensor | None] = []
    for (_, views), x, result, want in zip(rows, sources, results, needed, strict=True):
        views += _packed_views(result, head_dim) if want else [_ABSENT] * 3
        tensors += [x, x, x, grad, *[result if want else None] * 3]
    _run("backward", qkv[0], _packed_sizes(qkv[0], head_dim), eps, rows, tensors, state)
    return [
        _layout.in_format_of(result, x) if want else result
        for x, result, want in zip(qkv, results, needed, strict=True)
    ]


def direct_backward(
    tensors: Sequence[Tensor], head_dim: int, eps: float, needed: Sequence[bool]
) -> Callable[..., list[Tensor]] | None:
    """Returns what computes such gradients past the dispatcher, None if they need copies.

    tensors: the gradient of the output, the sums, and the packed projections.
    """
    grad_output, _, *qkv = tensors
    if not is_memory(grad_output, *qkv) or not all(map(_layout.is_channels_last, qkv)):
        return None
    if any(_rows_of_tokens(x) is not x for x in (grad_output, *qkv)):
        return None
    makers = [
        new(x.shape, x.dtype) if want else new_dense(0, x.dtype)
        for x, want in zip(qkv, needed, strict=True)
    ]
    rows = _packed_rows(qkv, grad_output, head_dim)
    for (_, views), make, want in zip(rows, makers, needed, strict=True):
        views += _packed_views(make(), head_dim) if want else [_ABSENT] * 3
    problem = _problem(qkv[0], _packed_sizes(qkv[0], head_dim), eps, rows)
    run = core().relu_linear_attention_backward

    def call(grad_output: Tensor, state: Tensor, *qkv: Tensor) -> list[Tensor]:
        grad = grad_output.data_ptr()
        results: list[Tensor] = []
        addresses: list[int] = []
        for x, make, want in zip(qkv, makers, needed, strict=True):
            result = make()
            results.append(result)
            read, written = x.data_ptr(), result.data_ptr() if want else 0
            addresses += (read, read, read, grad, written, written, written)
        run(problem, addresses, state.data_ptr())
        return results

    return call


def _run(
    direction: str,
    like: Tensor,
    sizes: tuple[int, int, int],
    eps: float,
    rows: Sequence[_Row],
    tensors: Sequence[Tensor | None],
    state: Tensor,
) -> None:
    """Calls the core; `tensors` are those that the views of all rows lie in, in their order."""
    if 0 in sizes or not sum(heads for heads, _ in rows):
        # Nothing to attend over; sums of nothing are zero.
        if direction == "forward":
            state.zero_()
        return
    addresses = [0 if x is None else x.data_ptr() for x in tensors]
    problem = _problem(like, sizes, eps, rows)
    name = f"relu_linear_attention_{direction}"
    if not _native.on_cuda(like):
        getattr(core(), name)(problem, addresses, state.data_ptr())
        return
    kernels = _native.cuda()
    workspace = state.new_empty(getattr(kernels, f"{name}_workspace")(problem, addresses))
    getattr(kernels, name)(
        problem, addresses, state.data_ptr(), workspace.data_ptr(), *_native.stream(like)
    )


def _problem(like: Tensor, sizes: tuple[int, int, int], eps: float, rows: Sequence[_Row]) -> bytes:
    problem: bytes = core().relu_linear_attention_problem(
        DTYPES[like.dtype],
        torch.get_num_threads(),
        sizes,
        eps,
        # Per source the heads, then all of its views.
        [(heads, *chain.from_iterable(views)) for heads, views in rows],
    )
    return problem


def _state(like: Tensor, heads: int, width: int) -> Tensor:
    wide = torch.promote_types(like.dtype, torch.float32)
    return like.new_empty((like.shape[0], heads, width + 1, width), dtype=wide)


def _dense_features(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _heads_view(x: Tensor) -> _View:
    return (0, x.stride(0), x.stride(1), x.stride(2))


def _output_size(qkv: Sequence[Tensor], head_dim: int) -> tuple[int, ...]:
    channels = sum(x.shape[1] // (3 * head_dim) for x in qkv) * head_dim
    return (qkv[0].shape[0], channels, *qkv[0].shape[2:])


def _packed_sizes(x: Tensor, head_dim: int) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2] * x.shape[3] * x.shape[4], head_dim


def _rows_of_tokens(x: Tensor) -> Tensor:
    """Returns `x`, or a channels-last copy: channels next to each other, one stride over tokens."""
    if x.stride(1) == 1 and _layout.position_stride(x) is not None:
        return x
    return x.contiguous(memory_format=torch.channels_last_3d)


def _packed_rows(sources: Sequence[Tensor], output: Tensor, head_dim: int) -> list[_Row]:
    """For each source its heads, and views of queries, keys, values and of its part of `output`."""
    batch, token = output.stride(0), _layout.position_stride(output) or 0
    rows: list[_Row] = []
    channel = 0
    for x in sources:
        heads = x.shape[1] // (3 * head_dim)
        rows.append((heads, [*_packed_views(x, head_dim), (channel, batch, head_dim, token)]))
        channel += heads * head_dim
    return rows


def _packed_views(x: Tensor, head_dim: int) -> list[_View]:
    """Views of the queries, keys and values of packed heads."""
    batch, token = x.stride(0), _layout.position_stride(x) or 0
    return [(part * head_dim, batch, 3 * head_dim, token) for part in range(3)]
