"""Tiny videos and checkpoints for the command line, and two ways of calling it."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evit_models import create_model, save_checkpoint
from evit_models.cli import main
from evit_models.video import write_video

TINY = ("--size", "64", "--frames", "4")

# One thread: tensors are tiny here, and other work on the machine makes two wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tests/conftest.py restores the number


class Result:
    """What a call of the command line gave."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line on stderr that tells the error; everything else must be progress."""
        lines = [line for line in self.err.splitlines() if line.startswith("evit: error:")]
        assert len(lines) == 1, f"expected one line of error, got {self.err!r}"
        assert "Traceback" not in self.err
        return lines[0]


Call = Callable[..., Result]


@pytest.fixture
def evit(capfd: pytest.CaptureFixture[str]) -> Call:
    """Calls the function behind the entry point in this process: quick."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture(scope="session")
def script() -> Path:
    """The installed `evit` script."""
    path = Path(sysconfig.get_path("scripts")) / "evit"
    assert path.is_file(), f"{path} is not there: is the package installed?"
    return path


@pytest.fixture(scope="session")
def installed(script: Path) -> Call:
    """Runs the installed script in a process of its own."""

    def call(*arguments: object) -> Result:
        run = subprocess.run(
            [script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            env=ENVIRONMENT,
        )
        return Result(run.returncode, run.stdout, run.stderr)

    return call


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of noise that moves, 96 x 72."""
    path: Path = tmp_path_factory.mktemp("cli") / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    big = noise.repeat(8, axis=0).repeat(8, axis=1)
    write_video(path, [np.roll(big, 3 * shift, axis=1) for shift in range(50)], 25)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A b0 with seven classes whose logits differ visibly."""
    path: Path = tmp_path_factory.mktemp("weights") / "b0.safetensors"
    torch.manual_seed(0)
    model = create_model("efficientvit3d_b0", 7)
    with torch.no_grad():
        model.head.classifier.weight.mul_(50)
        model.head.classifier.bias.copy_(torch.linspace(-1, 1, 7))
    save_checkpoint(model, path)
    return path
