"""The Triton kernels of relu_linear_attention, by tiles of tokens (rows) and features (columns).

With r = relu, M = sum r(k) v^T, z = sum r(k), per token: den = r(q) . z + eps, o = r(q) M / den.
Backward, with g the gradient of o: u = M g / den, dd = -(r(q) . u) / den; then dq = u + dd z,
dM = sum r(q) (g / den)^T, dz = sum dd r(q), dk = dM v + dz, dv = r(k) dM.

A view of heads is given by a tensor, where its first head begins, and the strides of batch, head,
token and feature. Heads are padded to PADDED features, which tensor cores can multiply.
"""

from __future__ import annotations

import triton
import triton.language as tl

from evit_kernels._triton import sum_of_splits


@triton.jit
def _relu(x):
    # A maximum would hide NaN.
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def _divided(x, den):
    # The inverse of 0 is 0: the query of such a token has no positive entry.
    return tl.where(den == 0, 0.0, x / den)


@triton.jit
def _dot(exact, wide, EXACT: tl.constexpr):
    """A product on tensor cores, without losing the digits that tf32 has no room for.

    `exact` comes from 16-bit storage and fits tf32 as it is; `wide` is split into what fits and the
    rest. EXACT says that the storage is float32: plain arithmetic then.
    """
    if EXACT:
        return tl.dot(exact, wide, input_precision="ieee")
    high = (wide.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    # Infinity less itself would be NaN.
    low = tl.where(tl.abs(wide) == float("inf"), 0.0, wide - high)
    return tl.dot(exact, high, tl.dot(exact, low, input_precision="tf32"), input_precision="tf32")


@triton.jit
def _tile(x, start, batch, head, token, feature, b, h, n, PADDED: tl.constexpr):
    """Pointers to the features (columns) of tokens n (rows) of head h, by the strides of a view."""
    base = x + start + b.to(tl.int64) * batch + h.to(tl.int64) * head
    return base + (n.to(tl.int64) * token)[:, None] + (_columns(PADDED) * feature)[None, :]


@triton.jit
def _columns(PADDED: tl.constexpr):
    return tl.arange(0, PADDED).to(tl.int64)


@triton.jit
def _inside(n, tokens, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    mask = (n < tokens)[:, None]
    if WIDTH != PADDED:
        mask = mask & (tl.arange(0, PADDED) < WIDTH)[None, :]
    return mask


@triton.jit
def _matrix(state, h, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Pointers to M of a head, counted over all samples, and which of them are inside."""
    i = tl.arange(0, PADDED)
    start = state + h * ((WIDTH + 1) * WIDTH)
    return start + i[:, None] * WIDTH + i[None, :], (i < WIDTH)[:, None] & (i < WIDTH)[None, :]


@triton.jit
def _transposed(state, h, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Pointers to M of a head, its rows as columns, and which of them are inside."""
    i = tl.arange(0, PADDED)
    start = state + h * ((WIDTH + 1) * WIDTH)
    return start + i[None, :] * WIDTH + i[:, None], (i < WIDTH)[:, None] & (i < WIDTH)[None, :]


@triton.jit
def _vector(state, h, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Pointers to z of a head, counted over all samples, and which of them are inside."""
    i = tl.arange(0, PADDED)
    return state + h * ((WIDTH + 1) * WIDTH) + WIDTH * WIDTH + i, i < WIDTH


@triton.jit
def _position(parts, heads):
    """Which part of the tokens, head and sample the program works on."""
    program = tl.program_id(0)
    return program % parts, program // parts % heads, program // parts // heads


@triton.jit
def sum_keys(
    k,
    k_start,
    k_batch,
    k_head,
    k_token,
    k_feature,
    v,
    v_start,
    v_batch,
    v_head,
    v_token,
    v_feature,
    partials,
    tokens,
    splits,
    first,
    heads,
    all_heads,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Writes M and z of one head over one split of the tokens."""
    split, h, b = _position(splits, heads)
    matrix = tl.zeros((PADDED, PADDED), tl.float32)
    vector = tl.zeros((PADDED,), tl.float32)
    for step in range(SPLIT // BLOCK):
        n = split * SPLIT + step * BLOCK + tl.arange(0, BLOCK)
        mask = _inside(n, tokens, WIDTH, PADDED)
        key_at = _tile(k, k_start, k_batch, k_head, k_token, k_feature, b, h, n, PADDED)
        key = _relu(tl.load(key_at, mask=mask, other=0.0).to(tl.float32))
        value_at = _tile(v, v_start, v_batch, v_head, v_token, v_feature, b, h, n, PADDED)
        value = tl.load(value_at, mask=mask, other=0.0).to(tl.float32)
        # Both come from storage: where that has 16 bits, tf32 holds them as they are.
        if EXACT:
            matrix += tl.dot(tl.trans(key), value, input_precision="ieee")
        else:
            matrix += tl.dot(tl.trans(key), value, input_precision="tf32")
        vector += tl.sum(key, axis=0)
    of_split = (split.to(tl.int64) * (tl.num_programs(0) // splits // heads) + b) * all_heads
    at, mask = _matrix(partials, of_split + first + h, WIDTH, PADDED)
    tl.store(at, matrix, mask=mask)
    at, mask = _vector(partials, of_split + first + h, WIDTH, PADDED)
    tl.store(at, vector, mask=mask)


@triton.jit
def add_splits(partials, total, entries, splits, BLOCK: tl.constexpr):
    """Writes the sums over all tokens."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < entries
    sum = sum_of_splits(partials, i, inside, entries, splits, BLOCK)
    tl.store(total + i, sum, mask=inside)


@triton.jit
def attend(
    q,
    q_start,
    q_batch,
    q_head,
    q_token,
    q_feature,
    o,
    o_start,
    o_batch,
    o_head,
    o_token,
    o_feature,
    state,
    tokens,
    blocks,
    eps,
    first,
    heads,
    all_heads,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Writes the output of one head for one block of the tokens."""
    block, h, b = _position(blocks, heads)
    n = block * BLOCK + tl.arange(0, BLOCK)
    mask = _inside(n, tokens, WIDTH, PADDED)
    query_at = _tile(q, q_start, q_batch, q_head, q_token, q_feature, b, h, n, PADDED)
    query = _relu(tl.load(query_at, mask=mask, other=0.0).to(tl.float32))
    head = b.to(tl.int64) * all_heads + first + h
    at, inside = _matrix(state, head, WIDTH, PADDED)
    matrix = tl.load(at, mask=inside, other=0.0)
    at, inside = _vector(state, head, WIDTH, PADDED)
    den = tl.sum(query * tl.load(at, mask=inside, other=0.0)[None, :], axis=1) + eps
    output = _divided(_dot(query, matrix, EXACT), den[:, None])
    output_at = _tile(o, o_start, o_batch, o_head, o_token, o_feature, b, h, n, PADDED)
    tl.store(output_at, output.to(o.dtype.element_ty), mask=mask)


@triton.jit
def query_gradients(
    q,
    q_start,
    q_batch,
    q_head,
    q_token,
    q_feature,
    g,
    g_start,
    g_batch,
    g_head,
    g_token,
    g_feature,
    dq,
    dq_start,
    dq_batch,
    dq_head,
    dq_token,
    dq_feature,
    state,
    partials,
    tokens,
    splits,
    eps,
    first,
    heads,
    all_heads,
    WRITE: tl.constexpr,
    SUMS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Writes dq of one head for one split of the tokens, and dM and dz over that split."""
    split, h, b = _position(splits, heads)
    head = b.to(tl.int64) * all_heads + first + h
    at, inside = _transposed(state, head, WIDTH, PADDED)
    matrix = tl.load(at, mask=inside, other=0.0)
    at, inside = _vector(state, head, WIDTH, PADDED)
    keys = tl.load(at, mask=inside, other=0.0)
    grad_matrix = tl.zeros((PADDED, PADDED), tl.float32)
    grad_vector = tl.zeros((PADDED,), tl.float32)
    for step in range(SPLIT // BLOCK):
        n = split * SPLIT + step * BLOCK + tl.arange(0, BLOCK)
        mask = _inside(n, tokens, WIDTH, PADDED)
        query_at = _tile(q, q_start, q_batch, q_head, q_token, q_feature, b, h, n, PADDED)
        query = _relu(tl.load(query_at, mask=mask, other=0.0).to(tl.float32))
        grad_at = _tile(g, g_start, g_batch, g_head, g_token, g_feature, b, h, n, PADDED)
        grad = tl.load(grad_at, mask=mask, other=0.0).to(tl.float32)
        den = tl.sum(query * keys[None, :], axis=1) + eps
        u = _divided(_dot(grad, matrix, EXACT), den[:, None])
        slope = _divided(-tl.sum(query * u, axis=1), den)
        if WRITE:
            result = tl.where(query == 0, 0.0, u + slope[:, None] * keys[None, :])
            result_at = _tile(
                dq, dq_start, dq_batch, dq_head, dq_token, dq_feature, b, h, n, PADDED
            )
            tl.store(result_at, result.to(dq.dtype.element_ty), mask=mask)
        if SUMS:
            share = _divided(grad, den[:, None])
            grad_matrix += _dot(tl.trans(query), share, EXACT)
            grad_vector += tl.sum(query * slope[:, None], axis=0)
    if SUMS:
        of_split = (split.to(tl.int64) * (tl.num_programs(0) // splits // heads) + b) * all_heads
        at, inside = _matrix(partials, of_split + first + h, WIDTH, PADDED)
        tl.store(at, grad_matrix, mask=inside)
        at, inside = _vector(partials, of_split + first + h, WIDTH, PADDED)
        tl.store(at, grad_vector, mask=inside)


@triton.jit
def key_value_gradients(
    k,
    k_start,
    k_batch,
    k_head,
    k_token,
    k_feature,
    v,
    v_start,
    v_batch,
    v_head,
    v_token,
    v_feature,
    dk,
    dk_start,
    dk_batch,
    dk_head,
    dk_token,
    dk_feature,
    dv,
    dv_start,
    dv_batch,
    dv_head,
    dv_token,
    dv_feature,
    totals,
    tokens,
    blocks,
    first,
    heads,
    all_heads,
    WRITE_K: tl.constexpr,
    WRITE_V: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Writes dk and dv of one head for one block of the tokens."""
    block, h, b = _position(blocks, heads)
    n = block * BLOCK + tl.arange(0, BLOCK)
    mask = _inside(n, tokens, WIDTH, PADDED)
    head = b.to(tl.int64) * all_heads + first + h
    key_at = _tile(k, k_start, k_batch, k_head, k_token, k_feature, b, h, n, PADDED)
    key = _relu(tl.load(key_at, mask=mask, other=0.0).to(tl.float32))
    if WRITE_K:
        value_at = _tile(v, v_start, v_batch, v_head, v_token, v_feature, b, h, n, PADDED)
        value = tl.load(value_at, mask=mask, other=0.0).to(tl.float32)
        at, inside = _transposed(totals, head, WIDTH, PADDED)
        matrix = tl.load(at, mask=inside, other=0.0)
        at, inside = _vector(totals, head, WIDTH, PADDED)
        vector = tl.load(at, mask=inside, other=0.0)
        result = tl.where(key == 0, 0.0, _dot(value, matrix, EXACT) + vector[None, :])
        result_at = _tile(dk, dk_start, dk_batch, dk_head, dk_token, dk_feature, b, h, n, PADDED)
        tl.store(result_at, result.to(dk.dtype.element_ty), mask=mask)
    if WRITE_V:
        at, inside = _matrix(totals, head, WIDTH, PADDED)
        matrix = tl.load(at, mask=inside, other=0.0)
        result = _dot(key, matrix, EXACT)
        result_at = _tile(dv, dv_start, dv_batch, dv_head, dv_token, dv_feature, b, h, n, PADDED)
        tl.store(result_at, result.to(dv.dtype.element_ty), mask=mask)
