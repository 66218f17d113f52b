"""The installed script, in a process of its own: exit codes, pipes, signals, terminals."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, TINY, Call, Result

SMALL = ("--model", "efficientvit3d_b0", *TINY)


def test_success_prints_json_and_nothing_else(installed: Call, video: Path) -> None:
    result = installed("classify", video, *SMALL, "--json")
    assert result.code == 0
    assert result.err.startswith("Note: weights are random")
    assert len(result.err.splitlines()) == 1
    assert json.loads(result.out)["weights"] == "random"


def test_a_mistake_is_one_line_and_code_2(installed: Call, tmp_path: Path) -> None:
    result = installed("classify", tmp_path / "missing.mp4")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"{result.error}\n"


def test_the_module_is_the_same_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "evit_models.cli", "--version"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert run.returncode == 0
    assert run.stdout.startswith("evit 0.")


def test_random_weights_are_the_same_in_every_process(
    installed: Call, evit: Call, video: Path
) -> None:
    arguments = ("classify", video, *SMALL, "--json", "--backend", "reference")
    here, there = (json.loads(call(*arguments).out) for call in (evit, installed))
    assert [row["class"] for row in here["predictions"]] == [
        row["class"] for row in there["predictions"]
    ]


def test_a_reader_that_leaves_is_no_error(script: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([script, "models"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert run.returncode == 1
    assert run.stderr == ""


def test_a_closed_stdout_is_no_error(script: Path) -> None:
    run = subprocess.run(
        ["sh", "-c", 'exec "$0" models b0 >&-', script], stderr=subprocess.PIPE, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_an_interrupt_is_quiet(script: Path) -> None:
    tiny = ("--channels", "8", "--frames", "1", "--size", "4", "--rounds", "2000")
    process = subprocess.Popen(
        [script, "bench", "--op", "depthwise_conv3d", *tiny],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # A shell that starts the suite in the background has it ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "round 200/2000\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert [line for line in err.splitlines() if line and not line.startswith("round")] == []


def test_a_terminal_sees_a_bar(script: Path, video: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [script, "classify", video, *SMALL, "--views", "3"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            block = os.read(controller, 4096)
        except OSError:  # how Linux says that the other side has closed
            break
        if not block:
            break
        seen += block
    os.close(controller)
    assert process.wait(timeout=60) == 0
    assert "━" in seen.decode()
    assert b"view 1/3" not in seen
    assert process.stdout is not None
    assert b"weights are random" in process.stdout.read()
    process.stdout.close()


def test_import_of_the_package_stays_light() -> None:
    code = (
        "import sys, evit_models; "
        "print([m for m in ('av', 'rich', 'click', 'evit_models.cli') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_result_counts_errors() -> None:
    """The helper of these tests does not let two errors or a traceback through."""
    with pytest.raises(AssertionError):
        _ = Result(2, "", "evit: error: a\nevit: error: b\n").error
    with pytest.raises(AssertionError):
        _ = Result(2, "", "Traceback\nevit: error: a\n").error
