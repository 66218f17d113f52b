"""Features of a frozen backbone: the same training, read from a disk that may be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import losses, same_state, weights

from evit_models.training import ConfigError, Trainer, TrainingError, load_config
from evit_models.training.datasets import make_datasets
from evit_models.training.distributed import Ranks
from evit_models.training.features import CachedFeatures
from evit_models.training.logging import read_log
from evit_models.training.networks import make_model
from evit_models.video.datasets import TooManyBadVideos

FROZEN: dict[str, Any] = {
    "model": "efficientvit3d_b0", "frames": 5, "size": 32, "batch_size": 4, "epochs": 2,
    "workers": 0, "freeze": "backbone", "sampling": "center", "dropout": 0.2, "views": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tests/conftest.py restores the number


@pytest.fixture
def listing(videos: Path, tmp_path: Path) -> Path:
    """Videos of this test's own, to be damaged."""
    shutil.copytree(videos, tmp_path / "videos")
    return tmp_path / "videos" / "list.txt"


@pytest.fixture(scope="module")
def cached(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training from a cache that was empty, and that cache."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cached")
    train(videos / "list.txt", folder / "run", cache=str(folder / "cache"))
    return folder / "run", str(folder / "cache")


def train(listing: Path, folder: Path, **overrides: Any) -> Path:
    """Trains in a folder, and returns it."""
    data = {"data": str(listing), "eval_data": str(listing)}
    config = load_config(overrides={**FROZEN, **data, **overrides})
    clips, held_out = make_datasets(config)
    Trainer(config, folder, clips, held_out).run()
    return folder


def warnings(folder: Path) -> list[str]:
    return [row["text"] for row in read_log(folder) if row["kind"] == "warning"]


def features(cache: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(cache).rglob("*.features")}


def test_it_is_the_same_training(cached: tuple[Path, str], videos: Path, tmp_path: Path) -> None:
    plain, (folder, _) = train(videos / "list.txt", tmp_path / "plain"), cached
    assert list(losses(plain).values()) == pytest.approx(list(losses(folder).values()), rel=1e-4)
    rows = [[r["heads"] for r in read_log(f) if r["kind"] == "evaluation"] for f in (plain, folder)]
    assert len(rows[0]) == len(rows[1]) == 2
    for row, other in zip(*rows, strict=True):
        assert row["class"] == pytest.approx(other["class"], rel=1e-3)


def test_computed_once_and_again_aloud_where_corrupt(
    cached: tuple[Path, str], videos: Path, tmp_path: Path
) -> None:
    first, cache = cached
    found = features(cache)
    assert len(found) == 2 * 20, "one view in training, two in evaluation"
    times = {path: path.stat().st_mtime_ns for path in found}
    harmed = sorted(found)[5:8]
    for path, harm in zip(harmed, ("flip", "cut", "empty"), strict=True):
        content = bytearray(found[path])
        content[-5] ^= 8
        path.write_bytes({"flip": bytes(content), "cut": content[:-9], "empty": b""}[harm])
    again = train(videos / "list.txt", tmp_path / "again", cache=cache)
    said = [text for text in warnings(again) if "features" in text]
    assert len(said) == 3
    for text in said:
        assert any(str(path) in text for path in harmed)
        assert "SHA-256 does not match; they are computed again" in text
    assert features(cache) == found
    for path, time in times.items():
        assert (path.stat().st_mtime_ns == time) == (path not in harmed)
    assert losses(again) == losses(first)
    assert same_state(*(weights(f / "model.safetensors") for f in (first, again)))


def test_what_features_depend_on_names_them(listing: Path, tmp_path: Path) -> None:
    """Other frames, weights or videos have features of their own; another head has not."""

    def fill(**overrides: Any) -> int:
        config = load_config(
            overrides={**FROZEN, "data": str(listing), "cache": str(tmp_path / "c"), **overrides}
        )
        model = make_model(config, 10)
        CachedFeatures(make_datasets(config)[0], model, config).fill(model, config, Ranks())
        return len(features(config.cache))

    listing.write_text("00000.mp4 0\n00001.mp4 1\n")
    assert [fill(), fill(dropout=0.5), fill(frames=6), fill(seed=1)] == [2, 2, 4, 6]
    shutil.copy(listing.parent / "00005.mp4", listing.parent / "00001.mp4")
    assert fill() == 7


@pytest.mark.parametrize("workers", [0, 1])
def test_features_that_spoil_during_a_run_end_it_in_one_sentence(
    workers: int, listing: Path, tmp_path: Path
) -> None:
    cache = str(tmp_path / "cache")
    config = load_config(
        overrides={**FROZEN, "data": str(listing), "cache": cache, "workers": workers}
    )

    def spoil(kind: str, facts: dict[str, Any]) -> None:
        if kind == "step" and facts["step"] == 5:
            for path in features(cache):
                path.write_bytes(b"?" * 100)

    run = Trainer(config, tmp_path / "run", make_datasets(config)[0], observe=spoil)
    with pytest.raises(TrainingError, match=r"since the run began; the same command") as error:
        run.run()
    assert "\n" not in str(error.value)


def test_bad_videos(listing: Path, tmp_path: Path) -> None:
    (listing.parent / "00003.mp4").write_bytes(b"nothing")
    cache = str(tmp_path / "cache")
    folder = train(listing, tmp_path / "one", cache=cache)
    said = [text for text in warnings(folder) if "00003.mp4" in text]
    assert "another video stands for it" in said[0]
    assert "counted, not replaced" in said[1]
    result = [row for row in read_log(folder) if row["kind"] == "evaluation"][-1]
    assert (result["unreadable"], result["heads"]["class"]["clips"]) == (1, 19)
    (listing.parent / "00004.mp4").unlink()
    with pytest.raises(TooManyBadVideos, match="2 of 20 videos cannot be read"):
        train(listing, tmp_path / "two", cache=cache)
    for path in listing.parent.glob("*.mp4"):
        path.write_bytes(b"nothing")
    with pytest.raises(TooManyBadVideos, match="20 of 20 videos cannot be read"):
        train(listing, tmp_path / "none", cache=cache)


def test_a_folder_that_cannot_be_written(listing: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=r"cannot write features to .*Not a directory"):
        train(listing, tmp_path / "run", cache=str(tmp_path / "file"))


def test_centred_clips_are_those_of_evaluation(listing: Path) -> None:
    data = {"data": str(listing), "eval_data": str(listing), "views": 1}
    clips, held_out = make_datasets(load_config(overrides={**FROZEN, **data}))
    assert held_out is not None
    assert torch.equal(clips[4]["video"], held_out[4]["video"][0])
    clips.set_epoch(3)
    assert torch.equal(clips[4]["video"], held_out[4]["video"][0])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"freeze": "norm"}, "freeze must be backbone: a cache keeps what does not change"),
        ({"sampling": "random"}, "sampling must be center"),
        ({"flip": True}, "flip must be off: sampling center draws nothing"),
        ({"rand_augment": 5.0}, "rand_augment must be off"),
        ({"mixup": 0.5}, "mixup must be 0: it changes what a cache would keep"),
        ({"drop_path": 0.1}, "drop_path must be 0"),
        ({"dataset": "motion"}, "dataset must be list, folder or epic"),
        ({"parallel": "fsdp"}, "parallel must be ddp"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_cache_cannot_keep_is_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(overrides={**FROZEN, "cache": "cache", **overrides})
