"""Compilers that work while other tests run: they take minutes.

A test marked ``background(script, *arguments)`` has the script started as soon as it is known that
the test runs, with less priority than the tests, and asks for its `answer`. Of several processes of
a test run only one starts it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import shared

from evit_kernels.backends import INTERPRETER

_STARTED: list[subprocess.Popen[bytes]] = []  # so that none is thought to be forgotten


class Answer(NamedTuple):
    """How a script ended, and what it printed."""

    returncode: int
    text: str


def start(script: Path, *arguments: str) -> None:
    """Starts a script of Python, unless it was started before."""
    pid, log, end = _files(script)
    with shared.alone(script.stem):
        if pid.exists():
            return
        command = shlex.join([sys.executable, "-W", "ignore", str(script), *arguments])
        # The code of its end comes as a whole, whoever looks for it and whenever.
        text = f'nice -n 5 {command} >"$0" 2>&1; echo $? >"$1".new; mv "$1".new "$1"'
        process = subprocess.Popen(
            ["sh", "-c", text, str(log), str(end)],
            env={name: value for name, value in os.environ.items() if name != INTERPRETER},
            start_new_session=True,
        )
        _STARTED.append(process)
        pid.write_text(str(process.pid))


def answer(script: Path, *arguments: str) -> Answer:
    """Returns what came of a script, when it has ended."""
    start(script, *arguments)
    _, log, end = _files(script)
    while not end.exists():
        time.sleep(0.1)
    return Answer(int(end.read_text()), log.read_text(errors="replace"))


def _files(script: Path) -> tuple[Path, Path, Path]:
    folder = shared.folder()
    return folder / f"{script.stem}.pid", folder / f"{script.stem}.log", folder / script.stem
