"""SIGKILL at any moment, then the same command again: the run ends as if nothing had happened.

`tests/training/endurance.py` does the same many times over.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from runs import assert_same_run, command, finish, losses, start

from evit_models.training.checkpointing import checkpoints, why_bad
from evit_models.video import preparing

# Without it, torchrun fails to restart killed processes in about half of all cases.
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    finish(start(command(folder)))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes, and what they said."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    out = finish(start(command(folder, processes=2, restarts=1, batch_size=3)))
    (folder / "said.txt").write_text(out)
    return folder


def test_one_process(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    moments: list[Callable[[], bool]] = [
        lambda: is_saving(folder),
        lambda: len(losses(folder)) >= 5,
        lambda: len(losses(folder)) >= 7 and is_saving(folder),
    ]
    for moment in moments:
        kill_when(start(command(folder)), moment)
        whole = [why_bad(path) is None for path in checkpoints(folder / "checkpoints")]
        assert all(whole), "a killed save must leave nothing that looks like a checkpoint"
    out = finish(start(command(folder)))
    assert "Goes on from step" in out
    assert_same_run(folder, reference)


def test_two_processes_at_once(pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_when(
        start(command(folder, processes=2, batch_size=3)),
        lambda: len(losses(folder)) >= 4 and is_saving(folder),
    )
    out = finish(start(command(folder, processes=2, batch_size=3)))
    assert "Goes on from step" in out
    assert_same_run(folder, pair)


def test_processes_end_with_their_launcher(pair: Path, tmp_path: Path) -> None:
    """Else they would go on beside those that the same command starts again."""
    folder = tmp_path / "run"
    process = start(command(folder, processes=2, batch_size=3))
    wait_until(process, lambda: len(losses(folder)) >= 3)
    ranks = descendants(process.pid)
    process.kill()
    again = start(command(folder, processes=2, batch_size=3))
    process.communicate()
    assert_gone(ranks)
    out = finish(again)
    assert "Goes on from step" in out
    assert_same_run(folder, pair)


def test_one_of_two_processes_is_restarted(pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(command(folder, processes=2, batch_size=3, restarts=2), **OWN_STORE)
    wait_until(process, lambda: len(losses(folder)) >= 4)
    os.kill(a_rank(process, random.Random(0).randrange(2)), signal.SIGKILL)
    out = finish(process)
    assert "Goes on from step" in out
    assert_same_run(folder, pair)


def test_shared_store_is_warned_of(pair: Path) -> None:
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in (pair / "said.txt").read_text()


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is being written at this moment."""
    try:
        return any(".pt." in path.name for path in (folder / "checkpoints").glob(".*.tmp"))
    except OSError:
        return False


def wait_until(process: subprocess.Popen[str], moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not moment():
        assert process.poll() is None, f"ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def kill_when(process: subprocess.Popen[str], moment: Callable[[], bool]) -> None:
    """Kills a command and all that it started, as a machine that stops would."""
    try:
        wait_until(process, moment)
    finally:
        # First it, who might start others; processes of torchrun are in groups of their own.
        family = [process.pid, *descendants(process.pid)]
        for member in family:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.communicate()
    assert_gone(family)


def descendants(process: int) -> list[int]:
    """The process ids of all that a process started, and they in turn."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [one for child in map(int, found) for one in (child, *descendants(child))]


def assert_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(preparing._lives, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def a_rank(process: subprocess.Popen[str], rank: int) -> int:
    """The process id of a rank under torchrun."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes()
        if re.search(rb"\0RANK=%d\0" % rank, environment):
            return int(child)
    raise AssertionError(f"rank {rank} is not among {children}")
