"""Weights that know their data: `evit classify` shows them the clips that they were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call

from evit_models import create_model, load_model, save_checkpoint
from evit_models.video import ClipTransform, VideoReader, view_indices

NAMES = ["walk", "run", "jump", "sit", "stand"]


def _weights(path: Path, **data: Any) -> Path:
    torch.manual_seed(0)
    model = create_model("efficientvit3d_b0", 5)
    model.data_cfg.update(data)
    with torch.no_grad():
        model.head.classifier.weight.mul_(50)
    save_checkpoint(model, path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of clips of 6 frames, 3 apart, of 48 x 48 pixels, with five classes."""
    path = tmp_path_factory.mktemp("trained") / "trained.safetensors"
    return _weights(path, input_size=(3, 6, 48, 48), stride=3, class_names=NAMES)


def _expected(path: Path, video: Path, frames: int, size: int, stride: int | None) -> torch.Tensor:
    model = load_model(path).eval()
    with VideoReader(video) as reader, torch.inference_mode():
        (indices,) = view_indices(50, frames, 1, stride)
        logits = model(ClipTransform(size=size)(list(reader.frames_by_index(indices))))
    return logits[0].double()


def test_the_checkpoint_says_which_clips(evit: Call, video: Path, trained: Path) -> None:
    result = evit("classify", video, "--checkpoint", trained)
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == (
        "From the checkpoint: 6 frames, 3 apart, 48 x 48 pixels, names of 5 classes."
    )
    assert "clips of 6 frames 3 apart, 48 x 48 pixels" in result.out

    as_json = evit("classify", video, "--checkpoint", trained, "--json")
    facts = json.loads(as_json.out)
    assert (facts["frames"], facts["stride"], facts["size"]) == (6, 3, 48)
    assert "From the checkpoint" in as_json.err
    found = {row["label"]: row["probability"] for row in facts["predictions"]}
    shares = _expected(trained, video, 6, 48, 3).softmax(-1).tolist()
    assert [found[name] for name in NAMES] == pytest.approx(shares, rel=1e-4)


def test_what_the_user_says_wins(evit: Call, video: Path, trained: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    options = ("--frames", 4, "--stride", 0, "--size", 64, "--labels", labels)
    result = evit("classify", video, "--checkpoint", trained, *options, "--json")
    facts = json.loads(result.out)
    assert (facts["frames"], facts["stride"], facts["size"]) == (4, None, 64)
    assert facts["from_checkpoint"] == []
    assert "From the checkpoint" not in result.err
    found = {row["label"]: row["probability"] for row in facts["predictions"]}
    shares = _expected(trained, video, 4, 64, None).softmax(-1).tolist()
    assert [found[name] for name in "abcde"] == pytest.approx(shares, rel=1e-4)

    some = evit("classify", video, "--checkpoint", trained, "--size", 64)
    first = some.out.splitlines()[0]
    assert first == "From the checkpoint: 6 frames, 3 apart, names of 5 classes."


def test_frames_spread_where_training_spread_them(evit: Call, video: Path, tmp_path: Path) -> None:
    path = _weights(tmp_path / "spread.safetensors", input_size=(3, 4, 48, 48), stride=None)
    result = evit("classify", video, "--checkpoint", path)
    assert "From the checkpoint: 4 frames, spread over the video, 48 x 48 pixels." in result.out


def test_two_heads_are_shown_one_after_the_other(evit: Call, video: Path, tmp_path: Path) -> None:
    path = _weights(
        tmp_path / "heads.safetensors",
        input_size=(3, 4, 48, 48),
        stride=None,
        class_names=["take", "put", "cup", "knife", "pan"],
        heads={"verb": 2, "noun": 3},
    )
    facts = json.loads(evit("classify", video, "--checkpoint", path, "--json").out)
    logits = _expected(path, video, 4, 48, None)
    for head, part, names in (
        ("verb", logits[:2], ["take", "put"]),
        ("noun", logits[2:], ["cup", "knife", "pan"]),
    ):
        rows = [row for row in facts["predictions"] if row["head"] == head]
        assert sum(row["probability"] for row in rows) == pytest.approx(1)
        assert all(names[row["class"]] == row["label"] for row in rows)
        shares = {row["class"]: row["probability"] for row in rows}
        assert [shares[i] for i in range(len(names))] == pytest.approx(
            part.softmax(-1).tolist(), rel=1e-4
        )
    text = evit("classify", video, "--checkpoint", path, "--topk", 1).out.splitlines()
    assert [line.split()[0] for line in text[-4::2]] == ["verb", "noun"]


def test_a_file_does_not_decide_to_fill_the_memory(evit: Call, video: Path, tmp_path: Path) -> None:
    path = _weights(tmp_path / "huge.safetensors", input_size=(3, 16384, 16384, 16384))
    result = evit("classify", video, "--checkpoint", path)
    assert result.code == 2
    assert "16384 frames of 16384 x 16384 pixels; give --frames and --size" in result.error
    assert evit("classify", video, "--checkpoint", path, "--frames", 4, "--size", 48).code == 0
