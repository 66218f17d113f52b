"""Scripts for a machine with a GPU: what they say without one, and what they would run on one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SANITIZER = ROOT / "tests" / "compute_sanitizer.sh"


def _run(script: Path, *arguments: str, path: Path | None = None, **more: str) -> tuple[int, str]:
    environment = {**os.environ, **more}
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", str(script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.fixture
def pretended(tmp_path: Path) -> Path:
    """A folder with a `python` that sees a GPU and a compute-sanitizer that only tells its call."""
    for name, body in {
        "python": "exit 0",
        "pretended-sanitizer": 'echo "sanitizer $*"; case "$*" in *racecheck*) exit 1;; esac',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_sanitizer_says_that_there_is_no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device")
    code, words = _run(SANITIZER)
    assert code == 2
    assert "compute_sanitizer.sh: torch sees no CUDA device" in words


def test_sanitizer_says_that_it_is_missing(pretended: Path) -> None:
    code, words = _run(SANITIZER, path=pretended, COMPUTE_SANITIZER="no-such-program")
    assert code == 2
    assert "there is no compute-sanitizer" in words


def test_sanitizer_runs_both_tools_and_reports_either(pretended: Path) -> None:
    code, words = _run(
        SANITIZER,
        "one.py",
        path=pretended,
        COMPUTE_SANITIZER=str(pretended / "pretended-sanitizer"),
    )
    assert code == 1
    calls = [line for line in words.splitlines() if line.startswith("sanitizer ")]
    assert ["--tool memcheck" in call for call in calls] == [True, False]
    assert ["--tool racecheck" in call for call in calls] == [False, True]
    assert all(call.endswith("-q one.py") for call in calls)
