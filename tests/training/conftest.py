"""What several tests of training read and call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import Doctor

from evit_models.cli import main
from evit_models.video.datasets import MotionClips


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)  # tests/conftest.py restores the number


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str]) -> Doctor:
    """Calls the command and returns its exit code and its findings by name."""

    def call(*arguments: object) -> tuple[int, dict[str, dict[str, str]]]:
        capfd.readouterr()
        code = main(["doctor", *map(str, arguments), "--json"])
        out, err = capfd.readouterr()
        assert code in (0, 1), err
        findings = json.loads(out)["findings"]
        for one in findings:
            assert bool(one["advice"]) == (one["verdict"] in ("broken", "warning")), one
        assert code == any(one["verdict"] == "broken" for one in findings)
        return code, {one["name"]: one for one in findings}

    return call


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty mp4 files of ten classes, and their list; not to be changed."""
    folder = tmp_path_factory.mktemp("videos")
    MotionClips("train", 20, 5, 32).write(folder)
    return folder
