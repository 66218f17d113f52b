"""Copies between memory formats: PyTorch's bits and strides, from any view, on any machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from depthwise_cases import lay_out
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evit_kernels import _layout, _native

CHANNELS_LAST = torch.channels_last_3d
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Views with columns next to each other are the core's, others are left to PyTorch.
LAYOUTS = (
    "contiguous",
    "slice",
    "offset",
    "expanded",
    "permuted",
    "strided",
    "channels_last_slice",
)
# Blocks of 16, 8 and 4 channels and positions, and what is left of them; planes near and far.
SIZES = [
    (1, 16, 2, 8, 8),
    (2, 24, 3, 5, 7),
    (1, 37, 4, 9, 11),
    (2, 5, 1, 3, 5),
    (1, 4, 1, 1, 3),
    (1, 100, 2, 2, 1),
    (3, 64, 1, 1, 1),
    (1, 17, 5, 61, 59),
    (1, 33, 8, 64, 32),
]


def _bits(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Every kind of bit pattern, NaN of all sorts too."""
    size = torch.empty(0, dtype=dtype).element_size()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    limits = torch.iinfo(integers)
    return torch.randint(limits.min, limits.max, shape, dtype=integers).view(dtype)


def _same_bits(x: Tensor, y: Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.shape == y.shape and torch.equal(x.view(integers), y.view(integers))


def _assert_copies(x: Tensor) -> None:
    rows = _layout.dense_channels_last(x)
    expected = x.contiguous(memory_format=CHANNELS_LAST)
    assert rows.is_contiguous(memory_format=CHANNELS_LAST)
    assert _same_bits(rows, expected)
    if not _layout.is_channels_last(x):
        planes = _layout.in_format_of(rows, x)
        assert planes.is_contiguous()
        assert planes.stride() == torch.empty(x.shape).stride()
        assert _same_bits(planes, x.contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bits_are_those_of_pytorch(
    size: tuple[int, ...], dtype: torch.dtype, instruction_set: str
) -> None:
    for layout in LAYOUTS[:4]:
        _assert_copies(lay_out(_bits(size, dtype), layout))


@given(
    size=st.tuples(
        *(st.integers(0 if axis == 0 else 1, most) for axis, most in enumerate((3, 70, 4, 9, 40)))
    ),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
)
def test_any_view_is_copied_as_by_pytorch(
    size: tuple[int, ...], layout: str, dtype: torch.dtype
) -> None:
    _assert_copies(lay_out(_bits(size, dtype), layout))


@pytest.mark.parametrize("axis", [1, 2, 3, 4])
def test_slices_of_one_axis_are_read_where_they_lie(axis: int) -> None:
    # Which axes make one run of positions depends on the slice.
    x = _bits((2, 20, 6, 9, 13), torch.float32)
    for part in (x.narrow(axis, 1, 5), x.narrow(axis, 2, 1), x.narrow(axis, 0, 4)):
        _assert_copies(part)


def test_every_element_is_written_once_for_any_number_of_threads() -> None:
    # Poisoned memory (see conftest) shows what nobody wrote; guards show what was written beyond.
    x = _bits((2, 40, 5, 33, 31), torch.float32)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(_layout.dense_channels_last(x))
        assert _same_bits(_layout.in_format_of(results[-1], x), x)
    for other in results[1:]:
        assert _same_bits(results[0], other)


@pytest.mark.parametrize("to_rows", [True, False])
@pytest.mark.parametrize("channels", [4, 7, 24, 70])
def test_nothing_is_written_beside_the_destination(
    channels: int, to_rows: bool, instruction_set: str
) -> None:
    # The destination is a view with a border on every side, which stays as it was.
    size = (2, channels, 3, 4, 21)
    x = _bits(size, torch.float32)
    wide = torch.full([n + 2 for n in size], 7.0)
    if to_rows:
        wide = wide.contiguous(memory_format=CHANNELS_LAST)
    inner = wide[tuple(slice(1, -1) for _ in size)]
    source = x if to_rows else x.contiguous(memory_format=CHANNELS_LAST)
    planes, rows = (source, inner) if to_rows else (inner, source)
    problem = _layout._problem(planes, rows)
    call: Any = getattr(_native.core(), "planar_to_rows" if to_rows else "rows_to_planar")
    call(problem, source.data_ptr(), inner.data_ptr())
    assert _same_bits(inner.contiguous(), x)
    inner.fill_(7.0)
    assert bool((wide == 7.0).all())


def test_channels_last_is_returned_as_it_is() -> None:
    for x in (
        torch.randn(2, 8, 3, 4, 5).contiguous(memory_format=CHANNELS_LAST),
        torch.randn(2, 1, 3, 4, 5),
        torch.randn(2, 8, 1, 1, 1),
    ):
        assert _layout.dense_channels_last(x) is x
        assert _layout.channels_last(x) is x
    wide = torch.randn(2, 8, 3, 4, 5).contiguous(memory_format=CHANNELS_LAST)
    assert _layout.channels_last(wide[:, 2:6]).data_ptr() == wide[:, 2:6].data_ptr()


def test_one_stride_through_all_positions() -> None:
    x = torch.randn(2, 8, 3, 4, 5).contiguous(memory_format=CHANNELS_LAST)
    assert _layout.position_stride(x) == 8
    assert _layout.position_stride(x, (0, 2, 3, 4)) == 8
    assert _layout.position_stride(x[:, 2:5], (0, 2, 3, 4)) == 8
    assert _layout.position_stride(x[:, :, :, :, 1:]) is None
    assert _layout.position_stride(x[:, :, :, 1:]) is None
    assert _layout.position_stride(x[:, :, 1:]) == 8
    assert _layout.position_stride(x[:, :, 1:], (0, 2, 3, 4)) is None
    # Axes of size 1 have strides that mean nothing; one position alone steps by its channels.
    assert _layout.position_stride(x[:, :, :, :, :1]) == 40
    assert _layout.position_stride(x[:1, :, :1, :1, :1], (0, 2, 3, 4)) == 8
    assert _layout.position_stride(torch.randn(2, 8, 1, 1, 1), (0, 2, 3, 4)) == 8


def test_core_refuses_elements_of_other_sizes() -> None:
    strides = (4, 1, 1, 1)
    problem = _native.core().layout_problem(1, 1, 1, 4, (1, 1, 1), strides, strides)
    x = torch.zeros(4, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="2, 4 or 8 bytes"):
        _native.core().planar_to_rows(problem, x.data_ptr(), torch.zeros_like(x).data_ptr())
