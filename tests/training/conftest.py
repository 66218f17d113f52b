"""Videos that several tests of training read."""

from __future__ import annotations

from pathlib import Path

import pytest

from evit_models.video.datasets import MotionClips


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty mp4 files of ten classes, and their list; not to be changed."""
    folder = tmp_path_factory.mktemp("videos")
    MotionClips("train", 20, 5, 32).write(folder)
    return folder
