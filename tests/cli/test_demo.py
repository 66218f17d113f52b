"""The demo: its two parts alone and together, what they keep, and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY, Call

from evit_models.training.config import PRESETS
from evit_models.video.datasets import MotionClips

KERNELS = ("--model", "efficientvit3d_b0", *TINY, "--rounds", 2)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of training, to see that everything works."""
    small = {"frames": 5, "size": 16, "motion_clips": 32, "epochs": 2}
    monkeypatch.setitem(PRESETS, "motion", {**PRESETS["motion"], **small})


def test_kernels_compares_the_two_ways(evit: Call, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = evit("demo", "--part", "kernels", *KERNELS, "--json", "--output", folder)
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert set(facts) == {"folder", "kernels"}
    facts = facts["kernels"]
    assert facts["video"]["num_frames"] == 75
    assert (folder / "shapes.mp4").is_file()
    assert facts["difference"]["relative"] < 2e-3
    assert facts["same_class"]
    assert facts["largest_logit"] > 1e-3, "the network must not be asleep"
    assert set(facts["median_seconds"]) == {"reference", "automatic"}
    assert facts["times_faster"] > 0


@pytest.mark.usefixtures("quick")
def test_training_ends_in_videos_that_are_classified(evit: Call, tmp_path: Path) -> None:
    result = evit("demo", "--part", "training", "--json", "--output", tmp_path)
    assert result.code == 0, result.err
    facts = json.loads(result.out)["training"]
    assert facts["steps"] == 4
    assert facts["chance_without_order"] == 0.5
    assert [row["epoch"] for row in facts["validation"]] == [1, 2]
    names = MotionClips().class_names
    assert [row["shows"] for row in facts["held_out"]] == names
    assert all(row["seen_as"] in names for row in facts["held_out"])
    curves = Path(facts["curves"])
    assert curves.read_bytes().startswith(b"\x89PNG")
    assert curves.parent == tmp_path / "training"
    assert (tmp_path / "training" / "checkpoints").is_dir(), "a kept run can go on"

    # `evit classify` itself says the same of a file.
    video = facts["held_out"][3]
    again = evit("classify", video["video"], "--checkpoint", facts["weights"], "--json")
    best = json.loads(again.out)["predictions"][0]
    assert best["label"] == video["seen_as"]
    assert best["probability"] == video["probability"]


@pytest.mark.usefixtures("quick")
def test_both_parts_in_words(evit: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = evit("demo", *KERNELS, "--epochs", 1)
    assert result.code == 0, result.err
    assert "Largest difference of the logits" in result.out
    assert "times as fast" in result.out
    assert "█" in result.out or "#" in result.out
    assert "Without the order of frames, 50 % is the best" in result.out
    assert "Accuracy on held-out clips" in result.out
    assert "of 10 right" in result.out
    assert "step 2/2" in result.err, "progress is seen"
    (folder,) = tmp_path.iterdir()
    assert f"Curves of loss and accuracy: {folder / 'training' / 'curves.png'}" in result.out
    assert f"Everything is in {folder}." in result.out
    assert not (folder / "training" / "checkpoints").exists(), "only what was asked for is kept"
    assert (folder / "shapes.mp4").is_file()


def test_a_folder_that_cannot_be_written(evit: Call, video: Path) -> None:
    result = evit("demo", "--part", "training", "--output", video / "below")
    assert result.code == 2
    assert "--output" in result.error
    assert "Not a directory" in result.error
