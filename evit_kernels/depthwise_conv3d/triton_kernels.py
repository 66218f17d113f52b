"""The Triton kernels of depthwise_conv3d. Both memory layouts are served by one source.

A program holds a tile of positions by channels. A position is a strip of four output rows at one
column, so that a row of the input is loaded once for all rows of the output that need it. Strides
tell where things lie; which of them is 1 is known when a kernel is compiled.

Names: KT, KH, KW are the kernel's sizes, ST, SH, SW its strides, DT, DH, DW its dilations. Of the
rows below the first one of a strip, bit j of ROWS tells whether row j is needed, and SPAN counts
them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from evit_kernels._triton_activations import activate, differentiate


@triton.jit
def _add_product(
    sum,
    x,
    v0,
    v1,
    v2,
    v3,
    v4,
    v5,
    v6,
    OFFSET: tl.constexpr,
    STEP: tl.constexpr,
    COUNT: tl.constexpr,
):
    """Adds x times the one of COUNT values that is OFFSET away, if v0 is at 0 and so by STEPs."""
    if OFFSET == 0:
        sum += x * v0
    if (OFFSET == STEP) & (COUNT > 1):
        sum += x * v1
    if (OFFSET == 2 * STEP) & (COUNT > 2):
        sum += x * v2
    if (OFFSET == 3 * STEP) & (COUNT > 3):
        sum += x * v3
    if (OFFSET == 4 * STEP) & (COUNT > 4):
        sum += x * v4
    if (OFFSET == 5 * STEP) & (COUNT > 5):
        sum += x * v5
    if (OFFSET == 6 * STEP) & (COUNT > 6):
        sum += x * v6
    return sum


@triton.jit
def _load_tap(at, step, mask, first, TAP: tl.constexpr, COUNT: tl.constexpr):
    """Loads weight TAP of COUNT; behind the last one stands the first, which nobody uses."""
    if TAP < COUNT:
        first = tl.load(at + TAP * step, mask=mask, other=0.0).to(tl.float32)
    return first


@triton.jit
def met_frame(
    kt,
    m,
    t,
    frames,
    others,
    before,
    ST: tl.constexpr,
    DT: tl.constexpr,
    LOW: tl.constexpr,
    CLAMP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Returns which of `others` frames meets frame t at tap kt, and whether there is one.

    Forward, t is an output frame and the others are the input's: there is one (m = 0), repeated
    where CLAMP says so. TRANSPOSED, t is an input frame and the others are the output's: the one
    that reads it in its place (m = 0), up to LOW that read the first frame where they meant one
    before, and those that read the last frame where they meant one behind.
    """
    if TRANSPOSED:
        shifted = t + before - kt * DT
        frame = tl.where(m == 0, shifted // ST, m - 1)
        frame = tl.where(m <= LOW, frame, others + LOW - m)
        meant = frame * ST - before + kt * DT
        if CLAMP:
            behind = (t == frames - 1) & (meant >= frames)
            beyond = tl.where(m <= LOW, (t == 0) & (meant < 0), behind)
            met = tl.where(m == 0, meant == t, beyond)
        else:
            met = meant == t
        met = met & (frame >= 0) & (frame < others)
    else:
        frame = t * ST - before + kt * DT
        if CLAMP:
            frame = tl.where(frame < 0, 0, frame)
            frame = tl.where(frame >= others, others - 1, frame)
        met = (frame >= 0) & (frame < others)
    return frame, met


@triton.jit
def _finish(
    sum,
    bias,
    g,
    g_channel,
    g_row,
    g_column,
    y,
    y_channel,
    y_row,
    y_column,
    c,
    channels,
    h,
    rows,
    w,
    columns,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    SLOPE: tl.constexpr,
):
    """Adds the bias, then stores the activation, or g times the activation's derivative."""
    mask = ((h < rows) & (w < columns))[:, None] & (c < channels)[None, :]
    if BIAS:
        sum += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    if SLOPE:
        at = g + (h * g_row + w * g_column)[:, None] + (c * g_channel)[None, :]
        grad = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        sum = differentiate(grad, sum, ACTIVATION)
    else:
        sum = activate(sum, ACTIVATION)
    at = y + (h * y_row + w * y_column)[:, None] + (c * y_channel)[None, :]
    tl.store(at, sum.to(y.dtype.element_ty), mask=mask)


@triton.jit
def convolve(
    x,
    x_batch,
    x_channel,
    x_frame,
    x_row,
    x_column,
    weight,
    w_tap,
    w_row,
    w_column,
    w_channel,
    bias,
    g,
    g_batch,
    g_channel,
    g_frame,
    g_row,
    g_column,
    y,
    y_batch,
    y_channel,
    y_frame,
    y_row,
    y_column,
    channels,
    frames,
    rows,
    columns,
    y_frames,
    y_rows,
    y_columns,
    before,
    above,
    left,
    tiles,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ST: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DT: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    LOW: tl.constexpr,
    FRAMES: tl.constexpr,
    CLAMP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    SLOPE: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes a tile of a convolution's output frame; with the weights reversed, of its gradient."""
    slabs = (channels + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    tile = program // slabs % tiles
    t = program // slabs // tiles % y_frames
    n = (program // slabs // tiles // y_frames).to(tl.int64)
    c = (program % slabs * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    p = tile * POSITIONS + tl.arange(0, POSITIONS)
    h = (p // y_columns * 4).to(tl.int64)
    w = (p % y_columns).to(tl.int64)
    in_slab = c < channels
    first_row = h * SH - above
    sum0 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum1 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum2 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum3 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for kt in range(KT):
        for m in range(FRAMES):
            frame, met = met_frame(
                kt, m, t, y_frames, frames, before, ST, DT, LOW, CLAMP, TRANSPOSED
            )
            if met:
                plane = x + n * x_batch + frame.to(tl.int64) * x_frame
                for kw in range(KW):
                    column = w * SW - left + kw * DW
                    inside = (h < y_rows) & (column >= 0) & (column < columns)
                    at = weight + kt * w_tap + kw * w_column + c * w_channel
                    v0 = tl.load(at, mask=in_slab, other=0.0).to(tl.float32)
                    v1 = _load_tap(at, w_row, in_slab, v0, 1, KH)[None, :]
                    v2 = _load_tap(at, w_row, in_slab, v0, 2, KH)[None, :]
                    v3 = _load_tap(at, w_row, in_slab, v0, 3, KH)[None, :]
                    v4 = _load_tap(at, w_row, in_slab, v0, 4, KH)[None, :]
                    v5 = _load_tap(at, w_row, in_slab, v0, 5, KH)[None, :]
                    v6 = _load_tap(at, w_row, in_slab, v0, 6, KH)[None, :]
                    v0 = v0[None, :]
                    for j in tl.static_range(SPAN):
                        if (ROWS >> j) & 1:
                            row = first_row + j
                            offsets = (row * x_row + column * x_column)[:, None]
                            mask = (inside & (row >= 0) & (row < rows))[:, None]
                            v = tl.load(
                                plane + offsets + (c * x_channel)[None, :],
                                mask=mask & in_slab[None, :],
                                other=0.0,
                            ).to(tl.float32)
                            sum0 = _add_product(sum0, v, v0, v1, v2, v3, v4, v5, v6, j, DH, KH)
                            sum1 = _add_product(sum1, v, v0, v1, v2, v3, v4, v5, v6, j - SH, DH, KH)
                            sum2 = _add_product(
                                sum2, v, v0, v1, v2, v3, v4, v5, v6, j - 2 * SH, DH, KH
                            )
                            sum3 = _add_product(
                                sum3, v, v0, v1, v2, v3, v4, v5, v6, j - 3 * SH, DH, KH
                            )
    g += n * g_batch + t.to(tl.int64) * g_frame
    y += n * y_batch + t.to(tl.int64) * y_frame
    for s in tl.static_range(4):
        if s == 0:
            sum = sum0
        elif s == 1:
            sum = sum1
        elif s == 2:
            sum = sum2
        else:
            sum = sum3
        _finish(
            sum,
            bias,
            g,
            g_channel,
            g_row,
            g_column,
            y,
            y_channel,
            y_row,
            y_column,
            c,
            channels,
            h + s,
            y_rows,
            w,
            y_columns,
            ACTIVATION,
            BIAS,
            SLOPE,
        )
