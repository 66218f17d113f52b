"""What a user's mistake gets: one line that names it, exit code 2, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY, Call

TINY_OPERATOR = ("--op", "depthwise_conv3d", "--channels", "8", "--size", "4", "--rounds", "1")
SMALL = ("--model", "efficientvit3d_b0", *TINY)


@pytest.fixture
def files(tmp_path: Path, video: Path) -> Path:
    """A folder of what people give by mistake."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {video}\n")
    (tmp_path / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{video}\n")
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:2000])
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    (tmp_path / "gap.txt").write_text("one\n\nthree\n")
    (tmp_path / "bad.json").write_text('["one", ')
    (tmp_path / "odd.json").write_text('{"0": "one", "2": "three"}')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    (tmp_path / "nothing.txt").touch()
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "resnet.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.mp4", "missing.mp4: no such file"),
        (".", "is a folder"),
        ("empty.mp4", "empty.mp4: is empty"),
        ("text.mp4", "text.mp4: is not a video"),
        ("list.mp4", "is an ffconcat playlist"),
        ("playlist.mp4", "is an M3U playlist"),
        ("cut.mp4", "cut.mp4: looks like an MP4"),
    ],
)
def test_bad_videos(name: str, words: str, files: Path, evit: Call) -> None:
    result = evit("classify", files / name, *SMALL)
    assert result.code == 2
    assert words in result.error
    assert result.out == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--labels", "few.txt", "--checkpoint", "CHECKPOINT"), "names 2 classes, the model has 7"),
        (("--labels", "missing.txt"), "missing.txt: No such file"),
        (("--labels", "gap.txt"), "gap.txt: line 2 is empty"),
        (("--labels", "bad.json"), "bad.json: is not valid JSON"),
        (("--labels", "odd.json"), "odd.json: expected a JSON list of names"),
        (("--labels", "numbers.json"), "expected a JSON list of names"),
        (("--labels", "nothing.txt"), "nothing.txt: is empty"),
        (("--labels", "noise.txt"), "noise.txt: is not UTF-8 text"),
        (("--checkpoint", "missing.pt"), "missing.pt: cannot be opened"),
        (("--checkpoint", "text.pt"), "text.pt"),
        (("--checkpoint", "text.safetensors"), "not a readable safetensors file"),
        (("--checkpoint", "few.txt"), "a checkpoint ends in"),
        (("--checkpoint", "resnet.pt"), "looks like a ResNet"),
        (("--checkpoint", "CHECKPOINT", "--model", "efficientvit3d_b1"), "efficientvit3d_b0"),
    ],
)
def test_bad_labels_and_checkpoints(
    options: tuple[str, ...],
    words: str,
    files: Path,
    evit: Call,
    video: Path,
    checkpoint: Path,
) -> None:
    paths = [
        checkpoint if option == "CHECKPOINT" else option if option[0] == "-" or "3d_" in option
        else files / option for option in options
    ]  # fmt: skip
    result = evit("classify", video, *TINY, *paths)
    assert result.code == 2
    assert words in result.error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("clasify",), "No such command 'clasify'"),
        (("classify",), "Missing argument 'VIDEO'"),
        (("classify", "VIDEO", "--frame", "3"), "No such option"),
        (("classify", "VIDEO", "--frames", "0"), "0 is not in the range"),
        (("classify", "VIDEO", "--stride", "x"), "--stride"),
        (("classify", "VIDEO", "--crops", "2"), "--crops"),
        (
            ("classify", "VIDEO", "--model", "efficientvit3d_b11"),
            "unknown model 'efficientvit3d_b11'; did you mean efficientvit3d_b1",
        ),
        (("classify", "VIDEO", "--model", "???"), "known: efficientvit3d_b0, "),
        (("classify", "VIDEO", "--device", "abacus"), "'abacus' is no device"),
        (("classify", "VIDEO", "--device", "meta"), "'meta' is not supported"),
        (("classify", "VIDEO", "--device", "cuda:99"), "'cuda:99' is not there"),
        (("classify", "VIDEO", "--backend", "magic"), "'magic' is none of reference, native"),
        (("models", "resnet"), "no model's name contains 'resnet'"),
        (("bench", "--model", "nothing"), "unknown model 'nothing'"),
        (("bench", "--model", "efficientvit3d_b0", "--op", "depthwise_conv3d"), "exclude"),
        (("bench", "--op", "conv2d"), "--op"),
        (("bench", "--mode", "graph"), "--mode: graph needs --device cuda"),
        (("bench", "--layout", "ncdhw"), "--layout: ncdhw needs --op"),
        (
            ("bench", *TINY_OPERATOR, "--profile", "nowhere/trace.json"),
            "nowhere/trace.json: No such",
        ),
        (
            ("bench", "--op", "relu_linear_attention_qkv", "--channels", "50"),
            "50 is no multiple of 3 x 16",
        ),
        (("demo", "--model", "efficientvit3d_c1"), "did you mean"),
        (("demo", "--output", "VIDEO"), "clip.mp4: File exists"),
        (("demo", "--part", "dessert"), "'dessert' is not one of 'kernels', 'training'"),
        (("demo", "--epochs", "0"), "0 is not in the range"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], words: str, evit: Call, video: Path) -> None:
    result = evit(*(str(video) if a == "VIDEO" else a for a in arguments))
    assert result.code == 2
    assert words in result.error
    assert result.out == ""


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(
    place: int, evit: Call, tmp_path: Path
) -> None:
    arguments = ["classify", str(tmp_path / "missing.mp4")]
    arguments.insert(place, "--debug")
    result = evit(*arguments)
    assert result.code == 2
    assert "Traceback (most recent call last)" in result.err
    assert result.err.splitlines()[-1].startswith("evit: error: ")


def test_an_error_of_ours_is_one_line_too(
    evit: Call, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evit_models.cli.predict

    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr(evit_models.cli.predict, "clips", broken)
    result = evit("classify", video, *SMALL)
    assert result.code == 1
    assert result.error == "evit: error: RuntimeError: a bug in two lines (--debug shows where)"
