"""The tests' own tools do what the tests rely on."""

from __future__ import annotations

import pytest
import torch
from accuracy import assert_accurate
from depthwise_cases import LAYOUTS, lay_out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_uninitialised_memory_is_poisoned(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3, dtype=dtype)
    for fresh in (
        torch.empty(5, dtype=dtype),
        torch.empty((1, 8, 2, 3, 4), dtype=dtype, memory_format=torch.channels_last_3d),
        torch.empty_like(x),
        torch.empty_strided((2, 3), (1, 2), dtype=dtype),
        x.new_empty(7),
        x.new_empty_strided((2, 3), (3, 1)),
    ):
        assert fresh.isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_strides_and_no_values(layout: str) -> None:
    x = torch.randn(2, 6, 3, 4, 5)
    view = lay_out(x, layout)
    expected = x[:, :1, :1].expand(x.shape) if layout == "expanded" else x
    assert torch.equal(view, expected)
    plain = view.is_contiguous() and view.storage_offset() == 0
    assert plain == (layout == "contiguous")


def test_accuracy_is_measured_from_one_unit_in_the_last_place() -> None:
    exact = torch.randn(4, 50, dtype=torch.float64)
    rounded = exact.bfloat16()
    assert_accurate(rounded, rounded, exact, 1.0, "rounded")
    with pytest.raises(AssertionError, match=r"rounded, whole tensor: error .* more than 2"):
        assert_accurate(rounded + 0.1, rounded, exact, 2.0, "rounded")
    # One bad row among many is found, though the whole tensor is hardly worse.
    exact = torch.randn(4000, 50, dtype=torch.float64)
    worse = exact.float()
    worse[7] *= 1.00001
    with pytest.raises(AssertionError, match="worst row"):
        assert_accurate(worse, exact.float(), exact, 2.0, "one row")
    # NaN is never accurate.
    with pytest.raises(AssertionError, match="error nan"):
        assert_accurate(rounded * float("nan"), rounded, exact[:4], 2.0, "lost")
