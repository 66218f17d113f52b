"""Trials: who never ran on a kind of device serves there only after giving the right answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import product

import emulation
import pytest
import torch
from placement import Placement, placements
from torch import Tensor

from evit_kernels import _calls, backends, depthwise_conv3d, relu_linear_attention_qkv, trials
from evit_kernels.depthwise_conv3d import native

CPU = torch.device("cpu")
FUSED = sorted({*backends.CUDA_OPERATORS, *backends.TRITON_OPERATORS})


@pytest.fixture(autouse=True)
def _none_held() -> Iterator[None]:
    trials.failure.cache_clear()
    yield
    trials.failure.cache_clear()


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as if its kernels had never run on one."""
    line = backends.Order(
        "cpu",
        backends.OPERATORS,
        backends.DTYPES,
        ("native", "reference", "triton"),
        "unmeasured",
        trial=True,
    )
    monkeypatch.setattr(backends, "ORDERS", (line,))


def _broken(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    forward = native.forward

    def broken(*arguments: object) -> Tensor:
        return change(forward(*arguments))  # type: ignore[arg-type]

    return broken


@pytest.mark.parametrize("dtype", backends.DTYPES, ids=str)
@pytest.mark.parametrize("operator", FUSED)
def test_right_kernels_pass(operator: str, dtype: torch.dtype) -> None:
    assert trials.failure(operator, "native", CPU, dtype) is None


@pytest.mark.parametrize("dtype", backends.DTYPES, ids=str)
@pytest.mark.parametrize("operator", FUSED)
def test_the_cuda_kernels_pass_where_they_are_emulated(operator: str, dtype: torch.dtype) -> None:
    with emulation.in_use():
        assert trials.failure(operator, "native", CPU, dtype) is None


NOWHERE = pytest.param(None, marks=pytest.mark.skip("no GPU, and Triton is not interpreted"))


@pytest.mark.parametrize("where", placements("relu_linear_attention") or [NOWHERE], ids=str)
def test_kernels_for_gpus_pass_on_them_and_triton_by_its_interpreter(where: Placement) -> None:
    device = torch.device(where.device)
    # The interpreter takes eleven seconds for a window of 27 taps.
    operators = FUSED if where.device == "cuda" else ["relu_linear_attention"]
    for operator, dtype in product(operators, (torch.float32, torch.float16, torch.bfloat16)):
        assert trials.failure(operator, where.backend, device, dtype) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y * 1.001, "its output was off by 1.0e-03 of the largest element"),
        (lambda y: y.index_fill(1, torch.tensor([0]), float("nan")), "its output was off by nan"),
        (lambda y: y @ y, "it raised RuntimeError: Expected size"),
    ],
    ids=["slightly wrong", "not a number", "refused"],
)
@pytest.mark.usefixtures("untried")
def test_wrong_kernels_are_passed_over_with_a_warning(
    change: Callable[[Tensor], Tensor], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(1, 16, 2, 4, 4), torch.randn(16, 1, 3, 3, 3)
    monkeypatch.setattr(native, "forward", _broken(change))
    with pytest.warns(RuntimeWarning, match=words):
        assert backends.select("depthwise_conv3d", None, x) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The same trial is not held again; who asks for a backend by name gets it.
        assert backends.select("depthwise_conv3d", None, x) == "reference"
        assert backends.select("depthwise_conv3d", "native", x) == "native"
    expected = depthwise_conv3d(x, weight, padding=1, backend="reference")
    assert torch.equal(depthwise_conv3d(x, weight, padding=1), expected)


@pytest.mark.usefixtures("untried")
def test_wrong_gradients_are_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = native.backward

    def broken(*arguments: object) -> tuple[Tensor, Tensor, Tensor]:
        dx, dw, db = backward(*arguments)  # type: ignore[arg-type]
        return dx, dw.roll(1, -1), db

    monkeypatch.setattr(native, "backward", broken)
    with pytest.warns(RuntimeWarning, match="its gradient of input 1 was off by"):
        assert backends.select("depthwise_conv3d", None, torch.ones(1)) == "reference"
    assert backends.select("relu_linear_attention", None, torch.ones(1)) == "native"


def test_a_trial_heeds_nothing_of_where_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    with (
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.device("meta"),
    ):
        assert trials.failure("depthwise_conv3d", "native", CPU, torch.float32) is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("untried")
def test_a_compiler_may_be_the_first_to_ask() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def attended(qkv: Tensor, head_dim: int) -> Tensor:
        return relu_linear_attention_qkv(depthwise_conv3d(qkv, weight, padding=1), head_dim)

    weight = torch.randn(96, 1, 3, 3, 3)
    for head_dim, frames in ((8, 2), (16, 3), (32, 4)):
        qkv = torch.randn(1, 96, frames, 5, 6)
        convolved = depthwise_conv3d(qkv, weight, padding=1)
        expected = relu_linear_attention_qkv(convolved, head_dim)
        torch.testing.assert_close(attended(qkv, head_dim), expected)
    assert trials.failure.cache_info().misses == 2


def test_nothing_is_tried_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    device = torch.device("cuda", 0)
    assert not trials.passed("depthwise_conv3d", "native", device, torch.float32)
    assert trials.failure.cache_info().misses == 0


def test_a_choice_made_while_a_graph_is_captured_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = _calls.Calls()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        key, _ = calls.find((torch.ones(1),), (), None)
        calls.keep(key, _calls.Known("reference", None))
    assert calls.find((torch.ones(1),), (), None) == (key, None)
    calls.keep(key, known := _calls.Known("native", None))
    assert calls.find((torch.ones(1),), (), None) == (key, known)
