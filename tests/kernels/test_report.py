"""`python -m evit_kernels`, through its real entry point."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

import evit_kernels
from evit_kernels import _native, backends, report


def _run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evit_kernels"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=Path(evit_kernels.__file__).parent.parent,  # the package under test, wherever it lies
        timeout=120,
    )


def test_prints_the_state_of_everything() -> None:
    result = _run(EVIT_BACKEND="reference", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    lines = {line.partition("  ")[0]: line for line in result.stdout.splitlines()}
    assert torch.__version__ in lines["torch"]
    assert platform.python_version() in lines["Python"]
    assert lines["threads"].split() == ["threads", "1"]
    assert lines["EVIT_BACKEND"].split() == ["EVIT_BACKEND", "reference"]
    core = _native.core()
    assert core.compiler in lines["compiler"]
    assert all(name in lines["instruction set"] for name in core.instruction_sets())
    assert "omp" in lines["OpenMP"]
    for operator in backends.OPERATORS:
        answers = [line.split() for line in result.stdout.splitlines() if operator in line]
        served = {words[2]: words[3] for words in answers if words[1] == "cpu"}
        assert served == {"reference": "yes", "native": "yes", "triton": "no:"}


def test_prints_who_is_asked_first_and_on_what_grounds() -> None:
    shown = str(report.collect())
    header, *lines = shown.split("\n\n")[2].splitlines()
    assert header.split() == ["device", "operators", "dtypes", "order", "because"]
    for line, order in zip(lines, backends.ORDERS, strict=True):
        assert line.startswith(order.device)
        assert line.endswith(f"{', '.join(order.backends)}  {order.grounds}")
        assert order.grounds.startswith(("measured", "unmeasured"))
        assert set(order.backends) == set(backends.NAMES)


def test_the_order_follows_what_was_measured_or_else_the_floor_and_a_trial() -> None:
    measured = next(line for line in backends.ORDERS if line.grounds.startswith("measured"))
    for device in ("cpu", "cuda"):
        for operator, dtype in product(backends.OPERATORS, backends.DTYPES):
            order = backends.order(operator, torch.device(device), dtype)
            assert order.backends[0] == "native"
            assert order.trial == (device == "cuda")
            known = operator in measured.operators and dtype == torch.float32
            assert (order is measured) == (known and device == "cpu")


def test_every_refusal_has_a_reason() -> None:
    rows = report.collect().rows
    assert {row.backend for row in rows} == set(backends.NAMES)
    assert all(row.reason for row in rows if not row.available)
    assert not any(row.reason for row in rows if row.available)
    available = {row.backend for row in rows if row.available and row.device == "cpu"}
    assert available == set(evit_kernels.available_backends("cpu"))


def test_device_without_kernels_has_the_reference_only() -> None:
    rows = backends.availability("meta")
    assert {row.backend for row in rows if row.available} == {"reference"}
    assert evit_kernels.available_backends("meta") == ("reference",)
    with pytest.raises(ValueError, match=r"operator must be one of .*got 'conv'"):
        evit_kernels.available_backends("cpu", "conv")
    reasons = {row.reason for row in rows if row.backend == "native"}
    assert len(reasons) == 1
    assert "kernels for CPU and CUDA" in reasons.pop()


def test_every_operator_is_reported_on_both_kinds_of_device() -> None:
    rows = [row for row in report.collect().rows if row.backend == "native"]
    assert {(row.operator, row.device) for row in rows} == {
        (operator, device) for operator in backends.OPERATORS for device in ("cpu", "cuda")
    }
    for row in rows:
        if row.device == "cuda" and row.operator not in backends.CUDA_OPERATORS:
            assert "no CUDA kernel for this operator" in row.reason


@pytest.mark.parametrize(
    ("compiled", "device", "runs"),
    [
        ("80", (8, 0), True),
        ("80", (8, 7), True),
        ("87", (8, 0), False),
        ("80", (9, 0), False),
        ("80+PTX", (9, 0), True),
        ("90+PTX", (8, 9), False),
        ("90+PTX", (10, 3), True),
    ],
)
def test_which_code_runs_on_which_device(
    compiled: str, device: tuple[int, int], runs: bool
) -> None:
    assert _native._runs_on(compiled, *device) == runs
