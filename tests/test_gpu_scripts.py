"""Scripts for a machine with a GPU: what they say without one, and what they would run on one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SANITIZER = ROOT / "tests" / "compute_sanitizer.sh"
SESSION = ROOT / "benchmarks" / "gpu_session.sh"


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
        "python": "echo python $*",
        "pytest": 'case "$*" in *large*) echo "1 failed"; exit 1;; *models*) exec sleep 30;; esac',
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


def test_session_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device")
    code, words = _run(SESSION, str(tmp_path))
    assert code == 2
    assert "gpu_session.sh: torch sees no CUDA device" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "gpu_session.sh [--dry-run] FOLDER [STEP...]"),
        (("--fast", "folder"), "gpu_session.sh [--dry-run] FOLDER [STEP...]"),
        (("folder", "test-everything"), "no step is called test-everything; there are install"),
    ],
)
def test_session_refuses(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    chosen = [str(tmp_path) if argument == "folder" else argument for argument in arguments]
    code, said = _run(SESSION, *chosen)
    assert code == 2
    assert words in said


def test_session_shows_commands_whose_files_and_options_are_there(tmp_path: Path) -> None:
    code, said = _run(SESSION, "--dry-run", str(tmp_path))
    assert code == 0
    lines = said.splitlines()
    assert lines[0].startswith("install (400 s): python -m pip install")
    assert list(tmp_path.iterdir()) == []
    for line in lines:
        for word in line.split():
            if word.startswith(("tests/", "benchmarks/")):
                assert list(ROOT.glob(word)), word
        # Results go to the folder, and every benchmark ends by itself before it is stopped.
        if " --budget " in line:
            assert f"{tmp_path}/" in line
            limit = int(line.split("(")[1].split()[0])
            assert float(line.split(" --budget ")[1].split()[0]) + 60 <= limit


def test_session_goes_on_after_a_failure_and_sums_up(pretended: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    steps = ("available", "test-device", "test-models", "test-large")
    code, _ = _run(SESSION, str(folder), *steps, path=pretended, LIMIT_SECONDS="1")
    assert code == 1
    summary = (folder / "summary.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in summary] == list(steps)
    said = [line.split(" in ")[0].split(": ", 1)[1] for line in summary]
    assert said == ["passed", "passed", "stopped after 1 s", "failed with 1"]
    assert (folder / "test-large.log").read_text() == "1 failed\n"
    assert summary[3].endswith("1 failed")
