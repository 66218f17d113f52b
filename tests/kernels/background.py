"""Compilers that work while other tests run: they take minutes, and tests mostly one core.

A test marked ``background(script)`` has the script started as soon as it is known that the test
runs, with less priority than the tests, and asks for its `answer`.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from evit_kernels.backends import INTERPRETER


class Answer(NamedTuple):
    """How a script ended, and what it printed."""

    returncode: int
    text: str


_RUNNING: dict[Path, tuple[subprocess.Popen[bytes], Path]] = {}
_FOLDER = tempfile.TemporaryDirectory(prefix="evit-background-")


def start(script: Path) -> None:
    """Starts a script of Python, unless it was started before."""
    if script in _RUNNING:
        return
    log = Path(_FOLDER.name) / f"{script.stem}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name != INTERPRETER},
            preexec_fn=lambda: os.nice(5),
        )
    atexit.register(process.kill)  # where its test was never reached
    _RUNNING[script] = process, log


def answer(script: Path) -> Answer:
    """Returns what came of a script, when it has ended."""
    start(script)
    process, log = _RUNNING[script]
    return Answer(process.wait(), log.read_text(errors="replace"))
