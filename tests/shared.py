"""What the processes of a test run share: a folder, and work that one of them does for all.

pytest-xdist runs several (`pytest -n auto`), and some tests start pytest again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "EVIT_TESTS_FOLDER"  # handed on to processes that are started


def begin() -> bool:
    """Makes the folder, unless this process was handed one; tells whether it did."""
    if FOLDER in os.environ:
        return False
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="evit-tests-")
    return True


def end() -> None:
    """Stops what still works in the folder, where its test was never reached, and removes it."""
    for started in folder().glob("*.pid"):
        with suppress(ProcessLookupError):
            os.killpg(int(started.read_text()), signal.SIGKILL)
    shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True)


def folder() -> Path:
    """The folder of this test run."""
    return Path(os.environ[FOLDER])


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Lets one process of the test run in at a time."""
    with (folder() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
