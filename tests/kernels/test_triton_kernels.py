"""The Triton kernels without a GPU: operator tests under the interpreter, and refusals."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evit_kernels import (
    backends,
    depthwise_conv3d,
    relu_linear_attention,
    relu_linear_attention_qkv,
)

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
MISSING = backends.triton_failure()
needs_triton = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

# Operator tests that the interpreter runs: those that tell much in little time, for it is slow.
# Left out are float64, which these kernels refuse, larger shapes, random calls, and bfloat16
# numbers that must survive bit by bit: the interpreter loses some.
SELECTED = {
    "test_depthwise_conv3d_windows.py": "",
    "test_depthwise_conv3d_accuracy.py": (
        "(that_of_pytorch and torch.float32 and 3x3x3s222)"
        " or (every_activation and bfloat16 and not relu)"
    ),
    "test_depthwise_conv3d_values.py": "become_infinite",
    "test_relu_linear_attention.py": (
        "(accuracy and (size3 or size4)) or concatenated or separate_form or memory_format"
        " or yields_zero or special or empty_batch or repeated_tokens or compiled"
    ),
    "test_trials.py": "",
}


@needs_triton
def test_operator_tests_pass_on_interpreted_kernels() -> None:
    chosen = [f"({name} and ({tests}))" if tests else name for name, tests in SELECTED.items()]
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore"]
    options += ["-k", f"cpu-triton and ({' or '.join(chosen)})"]
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(HERE / name) for name in SELECTED)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, backends.INTERPRETER: "1"},
    )
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr
    summary = answer.stdout.splitlines()[-1]
    assert "skipped" not in summary, answer.stdout
    assert int(summary.split()[0]) > 40, summary


def _calls() -> list[Callable[[], Tensor]]:
    x, weight = torch.randn(1, 48, 1, 3, 3), torch.randn(48, 1, 1, 3, 3)
    return [
        lambda: depthwise_conv3d(x, weight, backend="triton"),
        lambda: relu_linear_attention_qkv(x, 16, backend="triton"),
        lambda: relu_linear_attention(x[0], x[0], x[0], backend="triton"),
    ]


@needs_triton
@pytest.mark.parametrize("call", _calls())
def test_cpu_tensors_are_taken_under_the_interpreter_only(
    call: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(backends.INTERPRETER, raising=False)
    with pytest.raises(RuntimeError, match=r"'triton' is not available: .*TRITON_INTERPRET=1"):
        call()


@needs_triton
def test_an_interpreter_that_is_asked_for_too_late_is_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Loaded:
        INTERPRETED = False

    monkeypatch.setenv(backends.INTERPRETER, "1")
    monkeypatch.setitem(sys.modules, "evit_kernels._triton", Loaded)
    reason = backends.triton_refusal("depthwise_conv3d", CPU, torch.float32)
    assert reason is not None
    assert "after the Triton kernels were loaded" in reason


@pytest.mark.parametrize("call", _calls())
def test_triton_that_is_not_installed_is_a_reason(
    call: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    backends.triton_failure.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="'triton' is not available: Triton is not inst"):
            call()
    finally:
        backends.triton_failure.cache_clear()


@pytest.mark.parametrize(
    ("version", "fits"),
    [("3.1.0", False), ("3.2.0", True), ("3.9.1+git", True), ("3.10.0", False), ("new", False)],
)
def test_versions_of_triton(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "triton_version", lambda: version)
    backends.triton_failure.cache_clear()
    try:
        reason = backends.triton_failure()
    finally:
        backends.triton_failure.cache_clear()
    assert (reason is None) == fits
    assert fits or version in str(reason)


def test_operators_dtypes_and_devices_that_are_refused() -> None:
    for operator, device, dtype, wide, words in (
        ("dense_conv3d", "cpu", torch.float32, False, "no Triton kernels for this operator"),
        ("depthwise_conv3d", "cpu", torch.float64, False, "sums in float32"),
        ("depthwise_conv3d", "meta", torch.float32, False, "the tensors are on meta"),
        ("relu_linear_attention", "cuda", torch.float32, True, "heads of at most 64 features"),
    ):
        reason = backends.triton_refusal(operator, torch.device(device), dtype, wide)
        assert reason is not None
        assert words in reason


def test_looking_for_triton_does_not_import_it() -> None:
    code = (
        "import sys, evit_kernels\n"
        "evit_kernels.available_backends('cpu'); evit_kernels.available_backends('cuda')\n"
        "print('triton' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


@needs_triton
def test_the_table_of_tiles_is_whole_and_measured_on_a_gpu_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(HERE.parent.parent / "benchmarks"))
    maker = importlib.import_module("triton_tiles")
    table = json.loads(maker.TABLE.read_text())
    assert set(table["tiles"]) == {str(key) for key in maker.keys(maker.ARCHITECTURES)}
    assert "measured" in table["found"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["triton_tiles.py"])
    assert maker.main() == 2
    assert "no CUDA device" in capsys.readouterr().out
