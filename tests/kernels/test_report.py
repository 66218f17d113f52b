"""`python -m evit_kernels`, through its real entry point."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

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
    reasons = {row.reason for row in rows if row.backend == "native"}
    assert len(reasons) == 1
    assert "CPU kernels only" in reasons.pop()
