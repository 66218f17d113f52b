"""The Triton kernels of depthwise_conv3d's gradients that are no convolutions of stride 1.

Names are those of triton_kernels.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from evit_kernels._triton import sum_of_splits
from evit_kernels.depthwise_conv3d.triton_kernels import met_frame


@triton.jit
def _joined(mask, met):
    """A mask where one truth value holds; spread, the interpreter makes whole numbers of such."""
    return (mask & met) != 0


@triton.jit
def _class(i, first, ahead, K: tl.constexpr, S: tl.constexpr, D: tl.constexpr):
    """Returns a tap, the outputs that it comes from, and whether the tap meets the class at all.

    Taps that are not dilated meet a class at every S-th of them: i counts from the first of these.
    """
    if D == 1:
        i += ahead % S
    # Shifted so as to be positive: division rounds towards zero.
    shifted = ahead - i * D + (K + S) * D * S
    return i, first + (shifted // S - (K + S) * D), (i < K) & (shifted % S == 0)


@triton.jit
def scatter(
    g,
    g_batch,
    g_channel,
    g_frame,
    g_row,
    g_column,
    weight,
    w_tap,
    w_row,
    w_column,
    w_channel,
    dx,
    dx_batch,
    dx_channel,
    dx_frame,
    dx_row,
    dx_column,
    channels,
    frames,
    rows,
    columns,
    g_frames,
    g_rows,
    g_columns,
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
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes the data gradient of a strided convolution, for rows and columns of one class.

    The pixels that are SH rows and SW columns apart are met by the same taps: a small convolution
    of stride 1 for every class.
    """
    slabs = (channels + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    tile = program // slabs % tiles
    kind = program // slabs // tiles % (SH * SW)
    kind_h = kind // SW
    kind_w = kind % SW
    t = program // slabs // tiles // (SH * SW) % frames
    n = (program // slabs // tiles // (SH * SW) // frames).to(tl.int64)
    c = (program % slabs * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    p = tile * POSITIONS + tl.arange(0, POSITIONS)
    wide = (columns + SW - 1) // SW
    i = (p // wide).to(tl.int64)
    j = (p % wide).to(tl.int64)
    h = i * SH + kind_h
    w = j * SW + kind_w
    in_slab = c < channels
    inside = (h < rows) & (w < columns)
    offsets = (c * g_channel)[None, :]
    sum = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for kt in range(KT):
        for m in range(FRAMES):
            frame, met = met_frame(kt, m, t, frames, g_frames, before, ST, DT, LOW, CLAMP, True)
            if met:
                plane = g + n * g_batch + frame.to(tl.int64) * g_frame
                for i_h in range(0, KH, SH if DH == 1 else 1):
                    kh, row, row_met = _class(i_h, i, kind_h + above, KH, SH, DH)
                    in_row = _joined(inside & (row >= 0) & (row < g_rows), row_met)
                    for i_w in range(0, KW, SW if DW == 1 else 1):
                        kw, column, column_met = _class(i_w, j, kind_w + left, KW, SW, DW)
                        mask = _joined(in_row & (column >= 0) & (column < g_columns), column_met)
                        v = tl.load(
                            plane + (row * g_row + column * g_column)[:, None] + offsets,
                            mask=mask[:, None] & in_slab[None, :],
                            other=0.0,
                        ).to(tl.float32)
                        at = weight + kt * w_tap + kh * w_row + kw * w_column + c * w_channel
                        used = _joined(_joined(in_slab, row_met), column_met)
                        sum += v * tl.load(at, mask=used, other=0.0).to(tl.float32)[None, :]
    at = dx + n * dx_batch + t.to(tl.int64) * dx_frame
    at = at + (h * dx_row + w * dx_column)[:, None] + (c * dx_channel)[None, :]
    tl.store(at, sum.to(dx.dtype.element_ty), mask=inside[:, None] & in_slab[None, :])


@triton.jit
def _load_row(at, step, h, rows, mask, ROW: tl.constexpr):
    """Loads row ROW of the strips of a gradient."""
    inside = (h + ROW < rows)[:, None] & mask
    return tl.load(at + ROW * step, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _product(v, g, h, rows, ROW: tl.constexpr, UNEVEN: tl.constexpr):
    product = v * g
    if UNEVEN:
        # Behind the last row the gradient is 0, which times infinity would be NaN.
        product = tl.where((h + ROW < rows)[:, None], product, 0.0)
    return product


@triton.jit
def _add_rows(
    sum,
    v,
    g0,
    g1,
    g2,
    g3,
    h,
    rows,
    SH: tl.constexpr,
    OFFSET: tl.constexpr,
    USED: tl.constexpr,
    UNEVEN: tl.constexpr,
):
    """Adds, for a tap in use, an input row times the one output row of the strip that reads it."""
    if USED:
        if OFFSET == 0:
            sum += _product(v, g0, h, rows, 0, UNEVEN)
        if OFFSET == SH:
            sum += _product(v, g1, h, rows, 1, UNEVEN)
        if OFFSET == 2 * SH:
            sum += _product(v, g2, h, rows, 2, UNEVEN)
        if OFFSET == 3 * SH:
            sum += _product(v, g3, h, rows, 3, UNEVEN)
    return sum


@triton.jit
def _store_tap(at, sum, channels, mask, TAP: tl.constexpr, COUNT: tl.constexpr, KW: tl.constexpr):
    if TAP < COUNT:
        tl.store(at + TAP * KW * channels, tl.sum(sum, axis=0), mask=mask)


@triton.jit
def weigh(
    x,
    x_batch,
    x_channel,
    x_frame,
    x_row,
    x_column,
    g,
    g_batch,
    g_channel,
    g_frame,
    g_row,
    g_column,
    partials,
    channels,
    frames,
    rows,
    columns,
    g_frames,
    g_rows,
    g_columns,
    before,
    above,
    left,
    positions,
    KT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ST: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DT: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    CLAMP: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    UNEVEN: tl.constexpr,
    STEPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes the weight gradient of one column of taps over one split of the positions.

    The bias gradient is written behind the taps: partials is (splits, taps + 1, channels).
    """
    slabs = (channels + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    kw = program % KW
    kt = program // KW % KT
    slab = program // (KW * KT) % slabs
    split = program // (KW * KT) // slabs
    c = (slab * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    in_slab = c < channels
    strips = (g_rows + 3) // 4
    sum0 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum1 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum2 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum3 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum4 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum5 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    sum6 = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    plain = tl.zeros((POSITIONS, CHANNELS), tl.float32)
    for step in range(STEPS):
        p = (split * STEPS + step) * POSITIONS + tl.arange(0, POSITIONS)
        w = (p % g_columns).to(tl.int64)
        h = (p // g_columns % strips * 4).to(tl.int64)
        t = p // g_columns // strips % g_frames
        n = (p // g_columns // strips // g_frames).to(tl.int64)
        mask = (p < positions)[:, None] & in_slab[None, :]
        at = n * g_batch + t.to(tl.int64) * g_frame + h * g_row + w * g_column
        at = g + at[:, None] + (c * g_channel)[None, :]
        g0 = _load_row(at, g_row, h, g_rows, mask, 0)
        g1 = _load_row(at, g_row, h, g_rows, mask, 1)
        g2 = _load_row(at, g_row, h, g_rows, mask, 2)
        g3 = _load_row(at, g_row, h, g_rows, mask, 3)
        plain += (g0 + g1) + (g2 + g3)
        frame, met = met_frame(kt, 0, t, g_frames, frames, before, ST, DT, 0, CLAMP, False)
        column = w * SW - left + kw * DW
        inside = (p < positions) & met & (column >= 0) & (column < columns)
        plane = n * x_batch + frame.to(tl.int64) * x_frame + column * x_column
        for j in tl.static_range(SPAN):
            if (ROWS >> j) & 1:
                row = h * SH - above + j
                mask = (inside & (row >= 0) & (row < rows))[:, None] & in_slab[None, :]
                at = x + (plane + row * x_row)[:, None] + (c * x_channel)[None, :]
                v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
                sum0 = _add_rows(sum0, v, g0, g1, g2, g3, h, g_rows, SH, j, True, UNEVEN)
                sum1 = _add_rows(sum1, v, g0, g1, g2, g3, h, g_rows, SH, j - DH, KH > 1, UNEVEN)
                sum2 = _add_rows(sum2, v, g0, g1, g2, g3, h, g_rows, SH, j - 2 * DH, KH > 2, UNEVEN)
                sum3 = _add_rows(sum3, v, g0, g1, g2, g3, h, g_rows, SH, j - 3 * DH, KH > 3, UNEVEN)
                sum4 = _add_rows(sum4, v, g0, g1, g2, g3, h, g_rows, SH, j - 4 * DH, KH > 4, UNEVEN)
                sum5 = _add_rows(sum5, v, g0, g1, g2, g3, h, g_rows, SH, j - 5 * DH, KH > 5, UNEVEN)
                sum6 = _add_rows(sum6, v, g0, g1, g2, g3, h, g_rows, SH, j - 6 * DH, KH > 6, UNEVEN)
    of_split = partials + split.to(tl.int64) * ((KT * KH * KW + 1) * channels) + c
    at = of_split + (kt * (KH * KW) + kw) * channels
    _store_tap(at, sum0, channels, in_slab, 0, KH, KW)
    _store_tap(at, sum1, channels, in_slab, 1, KH, KW)
    _store_tap(at, sum2, channels, in_slab, 2, KH, KW)
    _store_tap(at, sum3, channels, in_slab, 3, KH, KW)
    _store_tap(at, sum4, channels, in_slab, 4, KH, KW)
    _store_tap(at, sum5, channels, in_slab, 5, KH, KW)
    _store_tap(at, sum6, channels, in_slab, 6, KH, KW)
    if (kt == 0) & (kw == 0):
        tl.store(of_split + KT * KH * KW * channels, tl.sum(plain, axis=0), mask=in_slab)


@triton.jit
def add_splits(
    partials,
    dw,
    db,
    channels,
    splits,
    TAPS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the dense gradients of weight and bias, as far as they are wanted."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    entries = (TAPS + 1) * channels
    inside = i < entries
    sum = sum_of_splits(partials, i, inside, entries, splits, BLOCK)
    tap = i // channels
    c = i % channels
    if WEIGHT:
        tl.store(dw + c * TAPS + tap, sum.to(dw.dtype.element_ty), mask=tap < TAPS)
    if BIAS:
        tl.store(db + c, sum.to(db.dtype.element_ty), mask=tap == TAPS)
