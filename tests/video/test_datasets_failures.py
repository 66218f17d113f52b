"""Videos that cannot be read: replaced and capped in training, counted in evaluation."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from videos import encode

from evit_models.video import ClipSampling, ClipTransform, TrainTransform
from evit_models.video.datasets import TooManyBadVideos, VideoList

BAD = (2, 5)


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos; number 2 is text and number 5 is missing."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(8):
        encode(folder / f"{number}.mp4", 6, size=(96, 64))
    (folder / "2.mp4").write_text("not a video")
    (folder / "5.mp4").unlink()
    path = folder / "list.txt"
    path.write_text("".join(f"{number}.mp4 {number}\n" for number in range(8)))
    return path


def _training(listing: Path, **options: Any) -> VideoList:
    return VideoList(
        listing, sampling=ClipSampling(2), transform=TrainTransform(size=16), **options
    )


def test_training_replaces_counts_and_logs(listing: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = _training(listing, bad_limit=0.5)
    with caplog.at_level(logging.WARNING):
        samples = [data[index] for index in range(8)]
    assert data.bad_videos == list(BAD)
    for index, sample in enumerate(samples):
        assert sample["valid"]
        assert sample["index"] == index
        assert Path(sample["source"]).stem == str(sample["label"])
        assert (sample["label"] == index) == (index not in BAD)
    assert "2.mp4: is not a video" in samples[2]["error"]
    assert "2.mp4: is not a video" in caplog.text
    assert "5.mp4: no such file" in caplog.text
    again = _training(listing, bad_limit=0.5)
    assert again[5]["source"] == samples[5]["source"]
    assert torch.equal(again[5]["video"], samples[5]["video"])


def test_past_the_cap_training_stops(listing: Path) -> None:
    data = _training(listing)  # 1 % of 8: one may be bad
    for index in range(5):
        if data.bad_videos == list(BAD):
            break
        try:
            data[index]
        except TooManyBadVideos:
            break
    with pytest.raises(TooManyBadVideos, match="2 of 8 videos cannot be read, more than the 1"):
        data[5]
    with pytest.raises(TooManyBadVideos, match=r"1 of 8 .* more than the 0"):
        _training(listing, bad_limit=0)[2]


def test_the_cap_counts_over_all_workers(listing: Path) -> None:
    data = _training(listing)
    with pytest.raises(TooManyBadVideos, match="2 of 8 videos cannot be read"):
        list(DataLoader(data, batch_size=1, num_workers=2))
    assert data.bad_videos == list(BAD)


def test_evaluation_counts_and_never_replaces(listing: Path) -> None:
    data = VideoList(
        listing,
        sampling=ClipSampling(2, views=2),
        transform=ClipTransform(size=16, crops=3),
        training=False,
    )
    batch = next(iter(DataLoader(data, batch_size=8, num_workers=1)))
    assert batch["video"].shape == (8, 6, 3, 2, 16, 16)
    assert batch["valid"].tolist() == [index not in BAD for index in range(8)]
    assert batch["label"].tolist() == list(range(8))
    assert batch["video"][list(BAD)].abs().max() == 0
    assert data.bad_videos == list(BAD)


KILLED = """
import os, signal, sys
from torch.utils.data import DataLoader
from evit_models.video import ClipSampling, TrainTransform
from evit_models.video.datasets import VideoList

class Killed(VideoList):
    def __getitem__(self, index):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

data = Killed(sys.argv[1], sampling=ClipSampling(2), transform=TrainTransform(size=16), bad_limit=1)
list(DataLoader(data, batch_size=1, num_workers=1, timeout=20))
"""


def test_a_killed_worker_is_an_error_within_the_time_limit(listing: Path) -> None:
    # In a process of its own: PyTorch raises the death from a signal handler, wherever that is.
    run = [sys.executable, "-c", KILLED, str(listing)]
    ended = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    # The last two where it died while it handed a sample over.
    errors = r"DataLoader worker .* (killed|exited)|Connection\w+Error|EOFError"
    assert re.search(errors, ended.stderr), ended.stderr


def test_stored_clips_are_read_like_videos(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", frames)
    np.save(tmp_path / "b.npy", frames.astype(np.float32))
    (tmp_path / "c.npy").write_bytes(b"nothing")
    (tmp_path / "list.txt").write_text("a.npy 0\nb.npy 1\nc.npy 2\nd.npy 3\n")
    data = VideoList(
        tmp_path / "list.txt",
        sampling=ClipSampling(3),
        transform=ClipTransform(size=20, crop_ratio=1),
        training=False,
    )
    expected = ClipTransform(size=20, crop_ratio=1)(frames[[1, 3, 5]])
    assert torch.equal(data[0]["video"], expected)
    assert "expected (T, H, W, 3) and uint8" in data[1]["error"]
    assert "is no stored clip" in data[2]["error"]
    assert "no such file" in data[3]["error"]
