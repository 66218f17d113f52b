"""The tests' own tools do what the tests rely on."""

from __future__ import annotations

import placement
import pytest
import torch
from accuracy import assert_accurate
from depthwise_cases import LAYOUTS, lay_out
from placement import Placement

from evit_kernels import backends, depthwise_conv3d


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


def test_a_placement_gives_its_device_and_its_backend_to_a_test() -> None:
    x, weight = torch.randn(1, 4, 2, 3, 3), torch.randn(4, 1, 3, 3, 3)
    place = Placement("cpu", "reference")
    with placement.in_use(place):
        assert torch.get_default_device() == torch.device("cpu")
        assert not torch.backends.cudnn.allow_tf32
        for asked in (None, "native"):
            assert backends.select("depthwise_conv3d", asked, x) == "reference"
        # To the compiler the choice is still a constant.
        assert vars(backends._select)["_dynamo_marked_constant"]
        depthwise_conv3d(x, weight, padding=1, backend="native")
    assert backends.select("depthwise_conv3d", "native", x) == "native"
    with placement.in_use(Placement("meta", "reference")):
        assert torch.ones(3).is_meta
        assert placement.randn(2, 3, seed=1).is_meta
    assert torch.equal(placement.randn(2, 3, seed=1), placement.randn(2, 3, seed=1))


@pytest.mark.parametrize("place", [Placement("cpu", "reference")], indirect=True)
def test_a_placement_is_in_use_in_tests_that_do_not_name_it() -> None:
    x = torch.randn(1, 4, 2, 3, 3)
    assert backends.select("depthwise_conv3d", "native", x) == "reference"


def test_operators_are_placed_wherever_a_backend_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"cpu": ("native", "reference"), "cuda": ("reference", "triton", "native")}
    monkeypatch.setattr(placement, "available_backends", lambda device, _: served[device])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert placement.placements("depthwise_conv3d") == []
    served["cpu"] = ("native", "reference", "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = [str(place) for place in placement.placements("depthwise_conv3d")]
    assert names == ["cpu-triton", "cuda-native", "cuda-triton"]


def test_what_a_placement_refuses_is_skipped_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        return "not these tensors"

    monkeypatch.setattr(backends, "refusal", refuse)
    x = torch.randn(1, 4, 2, 3, 3)
    for asked in (None, "native"):
        with (
            placement.in_use(Placement("cpu", "triton")),
            pytest.raises(pytest.skip.Exception, match="cpu-triton: not these tensors"),
        ):
            backends.select("depthwise_conv3d", asked, x)
