"""The Triton kernels without a GPU: operator tests under the interpreter, what is compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evit_kernels import backends

HERE = Path(__file__).resolve().parent
RESOURCES = HERE.parent / "native" / "triton_resources.py"
CPU = torch.device("cpu")
MISSING = backends.triton_failure()
needs_triton = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

# What the interpreter does in about a minute. Left out are float64, which these kernels refuse, the
# largest shapes, and bfloat16 numbers that must survive bit by bit: the interpreter loses some.
SELECTED = {
    "test_triton_interpreted.py": "test",
    "test_depthwise_conv3d_accuracy.py": (
        "interpreted and ("
        "(that_of_pytorch and torch.float32 and (s122 or s222 or T1))"
        " or (that_of_pytorch and torch.float16 and T1)"
        " or (every_activation and bfloat16))"
    ),
    "test_depthwise_conv3d_shapes.py": "interpreted and channels_last_slice",
    "test_depthwise_conv3d_values.py": "interpreted and (become_infinite or torch.float16)",
    "test_relu_linear_attention.py": (
        "interpreted and not gradcheck and not size0 and not size1 and not size2"
        " and not 16-2 and not 32-1 and not 16-1"
    ),
}


@needs_triton
@pytest.mark.parametrize("module", SELECTED)
def test_operator_tests_pass_on_interpreted_kernels(module: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    answer = subprocess.run(
        [*command, str(HERE / module), "-k", SELECTED[module]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, backends.INTERPRETER: "1"},
    )
    summary = answer.stdout.splitlines()[-1] if answer.stdout else ""
    assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr
    assert "passed" in summary
    assert "skipped" not in summary


@needs_triton
def test_no_kernel_spills_fast_paths_are_fast_and_the_table_of_resources_is_kept() -> None:
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", str(RESOURCES)],
        capture_output=True,
        text=True,
        check=False,
        env={name: x for name, x in os.environ.items() if name != backends.INTERPRETER},
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@needs_triton
def test_cpu_tensors_are_taken_under_the_interpreter_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(backends.INTERPRETER, raising=False)
    reason = backends.triton_refusal("depthwise_conv3d", CPU, torch.float32)
    assert reason is not None
    assert "TRITON_INTERPRET=1" in reason


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


def test_triton_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    backends.triton_failure.cache_clear()
    try:
        reason = backends.triton_refusal("relu_linear_attention", CPU, torch.float32)
    finally:
        backends.triton_failure.cache_clear()
    assert reason is not None
    assert "Triton is not installed" in reason


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
    for operator, device, dtype, words in (
        ("dense_conv3d", "cpu", torch.float32, "no Triton kernels for this operator"),
        ("depthwise_conv3d", "cpu", torch.float64, "sums in float32"),
        ("depthwise_conv3d", "meta", torch.float32, "the tensors are on meta"),
    ):
        reason = backends.triton_refusal(operator, torch.device(device), dtype)
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
