"""Training on real files: every key does what it says, and mistakes end before the first step."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import losses, same_state, start, weights
from test_killed import kill_when

from evit_models import create_model, load_model, save_checkpoint
from evit_models.cli import main
from evit_models.training import ConfigError, load_config
from evit_models.training.datasets import make_datasets
from evit_models.training.logging import read_log
from evit_models.video import ClipTransform, TrainTransform
from evit_models.video.datasets import DatasetError, EpicKitchens, VideoFolder

SMALL: dict[str, Any] = {
    "model": "efficientvit3d_b0",
    "frames": 5,
    "size": 16,
    "batch_size": 4,
    "epochs": 2,
    "workers": 0,
}


def config(**overrides: Any) -> Any:
    return load_config(overrides={**SMALL, **{k: _plain(v) for k, v in overrides.items()}})


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def arguments(
    folder: Path, data: Path, overrides: dict[str, Any] | None = None, **more: Any
) -> list[str]:
    pairs = {**SMALL, "eval_data": data, **(overrides or {}), **more, "data": data}
    words = ["train", "--output", str(folder)]
    return [*words, *(w for k, v in pairs.items() for w in ("--set", f"{k}={_plain(v)}"))]


def test_the_transform_is_what_the_keys_say(videos: Path) -> None:
    clips, held_out = make_datasets(
        config(
            data=videos / "list.txt", eval_data=videos / "list.txt", flip=True, color_jitter=0.4,
            rand_augment=5.0, random_erasing=0.3, crop_scale=0.2, views=2, crops=3, stride=2,
            seed=7,
        )
    )  # fmt: skip
    train, evaluate = clips.transform, held_out.transform  # type: ignore[attr-defined, union-attr]
    assert isinstance(train, TrainTransform)
    assert isinstance(evaluate, ClipTransform)
    assert (train.size, train.scale, train.flip, clips.seed) == (16, (0.2, 1.0), 0.5, 7)
    assert train.color_jitter is not None
    assert train.color_jitter.saturation == 0.4
    assert train.rand_augment is not None
    assert train.rand_augment.magnitude == 5.0
    assert train.erasing is not None
    assert train.erasing.probability == 0.3
    assert clips.sampling.stride == 2  # type: ignore[attr-defined]
    assert clips[0]["video"].shape == (3, 5, 16, 16)
    assert held_out[0]["video"].shape == (6, 3, 5, 16, 16)  # type: ignore[index]
    plain, _ = make_datasets(config(data=videos / "list.txt"))
    assert plain.transform == TrainTransform(16, scale=(0.5, 1.0))  # type: ignore[attr-defined]


def test_pixel_statistics_are_those_of_the_weights(videos: Path, tmp_path: Path) -> None:
    model = create_model("efficientvit3d_b0", 3)
    model.data_cfg.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_checkpoint(model, tmp_path / "start.safetensors")
    code = main(
        arguments(
            tmp_path / "run", videos / "list.txt", pretrained=tmp_path / "start.safetensors",
            epochs=1,
        )
    )  # fmt: skip
    assert code == 0
    assert load_model(tmp_path / "run").default_cfg["mean"] == (0.1, 0.2, 0.3)
    for clips in make_datasets(
        config(
            data=videos / "list.txt", eval_data=videos / "list.txt",
            pretrained=tmp_path / "start.safetensors",
        )
    ):  # fmt: skip
        assert clips.transform.mean == (0.1, 0.2, 0.3)  # type: ignore[union-attr]
        assert clips.transform.std == (0.4, 0.5, 0.6)  # type: ignore[union-attr]


def test_evaluation_has_the_classes_of_training(videos: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("00000.mp4 0\n00001.mp4 1\n")
    clips, held_out = make_datasets(config(data=videos / "list.txt", eval_data=few, root=videos))
    assert held_out is not None
    assert held_out.num_classes == clips.num_classes == 10
    with pytest.raises(DatasetError, match=r"list\.txt, line 3: label is 2, expected 0 to 1"):
        make_datasets(config(data=few, eval_data=videos / "list.txt", root=videos))
    names = videos / "classes.txt"
    clips, held_out = make_datasets(
        config(data=few, eval_data=videos / "list.txt", root=videos, class_names=names)
    )
    assert held_out is not None
    assert clips.class_names == held_out.class_names == names.read_text().split()


def test_names_beside_a_list_are_its_classes(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Numbers of other names are refused: evaluation would be wrong, and nobody would notice."""
    for name, classes in (("a", "x\ny\n"), ("b", "y\nx\n")):
        (tmp_path / f"{name}.txt").write_text("00000.mp4 0\n00001.mp4 1\n")
        (tmp_path / f"{name}.classes.txt").write_text(classes)
    both = {"data": tmp_path / "a.txt", "eval_data": tmp_path / "b.txt", "root": videos}
    assert make_datasets(config(**{**both, "eval_data": ""}))[0].class_names == ["x", "y"]
    with pytest.raises(ConfigError, match=r"eval_data: the numbers in .*b\.txt are those of"):
        make_datasets(config(**both))
    words = ["prepare", str(tmp_path / "a.txt"), str(tmp_path / "out"), "--classes", "x"]
    assert main(words) == 2
    assert "--classes: is for folders" in capfd.readouterr().err


def test_folders(videos: Path, tmp_path: Path) -> None:
    for split, classes in (("train", "abc"), ("test", "bc")):
        for number, name in enumerate(classes):
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copy(videos / f"0000{number}.mp4", tmp_path / split / name)
    both = {"dataset": "folder", "data": tmp_path / "train", "eval_data": tmp_path / "test"}
    clips, held_out = make_datasets(config(**both))
    assert isinstance(held_out, VideoFolder)
    assert clips.class_names == held_out.class_names == ["a", "b", "c"]
    assert held_out.labels == [1, 2], "numbers are those of training"
    with pytest.raises(DatasetError, match="a folder 'a' that class_names lacks"):
        make_datasets(config(**{**both, "data": both["eval_data"], "eval_data": both["data"]}))


COLUMNS = (
    "narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp",
    "verb_class", "noun_class",
)  # fmt: skip


def epic(folder: Path, videos: Path) -> tuple[Path, Path]:
    """A training table and one of evaluation, and their videos."""
    (folder / "P01").mkdir()
    shutil.copy(videos / "00000.mp4", folder / "P01" / "P01_01.MP4")
    tables = []
    for split, rows in (("train", 8), ("test", 4)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for row in range(rows):
                name = f"P01_01_{row}"
                table.writerow((name, "P01", "P01_01", "00:00:00.00", "00:00:00.50", row % 3, row))
        tables.append(folder / f"{split}.csv")
    return tables[0], tables[1]


def test_epic_kitchens(videos: Path, tmp_path: Path) -> None:
    data, held_out = epic(tmp_path, videos)
    both = {"dataset": "epic", "data": data, "eval_data": held_out, "root": tmp_path}
    clips, other = make_datasets(config(**both))
    assert isinstance(clips, EpicKitchens)
    assert isinstance(other, EpicKitchens)
    assert clips.actions == other.actions
    assert clips.num_classes == 8
    assert main(arguments(tmp_path / "run", data, both, target="verb_noun", epochs=1)) == 0
    assert load_model(tmp_path / "run").default_cfg["heads"] == {"verb": 97, "noun": 300}
    found = [row for row in read_log(tmp_path / "run") if row["kind"] == "evaluation"]
    assert found[-1]["heads"]["noun"]["clips"] == 4
    with pytest.raises(ConfigError, match="root: is missing"):
        make_datasets(config(**{**both, "root": ""}))
    assert make_datasets(config(**{**both, "eval_data": ""}))[1] is None


def test_epic_kitchens_prepared(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, held_out = epic(tmp_path, videos)
    before, _ = make_datasets(config(dataset="epic", data=data, eval_data="", root=tmp_path))
    out = tmp_path / "small"
    for table in (data, held_out):
        words = ["prepare", str(table), str(out), "--short-side", "32", "--processes", "1"]
        assert main(words) == 2
        assert "--root: is missing" in capfd.readouterr().err
        assert main([*words, "--root", str(tmp_path)]) == 0, capfd.readouterr().err
    both = {"data": out / "train.csv", "eval_data": out / "test.csv"}
    clips, other = make_datasets(config(dataset="epic", root=out, **both))
    assert clips.labels == before.labels
    assert clips.num_classes == before.num_classes
    assert isinstance(clips, EpicKitchens)
    assert Path(clips.segment(3).path) == out / "P01_01_3.mp4"
    assert other is not None
    assert clips[0]["valid"]
    assert other[0]["valid"]


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("", {}, "bad.txt: is empty"),
        ("00000.mp4 0\n00001.mp4 12\n", {"class_names": "classes.txt"}, "bad.txt, line 2: label"),
        ("00000.mp4 0\n00001.mp4\n", {}, "bad.txt, line 2: has no label"),
        ("nowhere.mp4 0\n", {}, "none of its first 1 videos exists"),
        ("00000.mp4 0\n", {"class_names": "none.txt"}, "none.txt: cannot be opened"),
        ("00000.mp4 0\n", {"rand_augment": 11}, "magnitude is 11"),
        ("00000.mp4 0\n", {"pretrained": "none.pt"}, "pretrained: none.pt"),
        ("00000.mp4 0\n", {"dataset": "motion"}, "data: has no use"),
        ("a,b\n1,2\n", {"dataset": "epic", "root": "."}, "bad.txt, line 1: lacks the columns"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_mistakes_end_before_the_first_step(
    text: str,
    overrides: dict[str, Any],
    words: str,
    videos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 2, and no folder."""
    overrides = dict(overrides)
    if overrides.get("class_names") == "classes.txt":
        overrides["class_names"] = videos / "classes.txt"
    (tmp_path / "bad.txt").write_text(text)
    options = {"dataset": "list", "root": videos, "eval_data": "", **overrides}
    assert main(arguments(tmp_path / "run", tmp_path / "bad.txt", options)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_videos(
    workers: int, videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One may be replaced, and is told of; more end the run and name its checkpoint."""
    broken = tmp_path / "videos"
    shutil.copytree(videos, broken)
    (broken / "00003.mp4").write_bytes(b"nothing")
    assert main(arguments(tmp_path / "one", broken / "list.txt", workers=workers)) == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if "00003.mp4" in line]
    assert len(warnings) == 2
    assert "another video stood for it" in warnings[0]
    assert "1 videos of evaluation cannot be read; they are counted, not" in warnings[1]
    result = [row for row in read_log(tmp_path / "one") if row["kind"] == "evaluation"][-1]
    assert (result["unreadable"], result["heads"]["class"]["clips"]) == (1, 19)
    (broken / "00004.mp4").write_bytes(b"nothing")
    assert main(arguments(tmp_path / "two", broken / "list.txt", workers=workers)) == 2
    error = capfd.readouterr().err
    assert "2 of 20 videos cannot be read" in error
    assert "there is no checkpoint yet" in error


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_on_real_files(processes: int, videos: Path, tmp_path: Path) -> None:
    """The command of the README, killed and given again, ends with the same weights."""

    def command(folder: Path) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        options = {"checkpoint_steps": 1, "workers": 1, "batch_size": 4 // processes}
        return [
            sys.executable, *(launcher if processes > 1 else ()), "-m", "evit_models.cli",
            *arguments(folder, videos / "list.txt", options),
        ]  # fmt: skip

    def run(folder: Path) -> str:
        process = start(command(folder))
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
        return out

    run(tmp_path / "whole")
    kill_when(start(command(tmp_path / "parts")), lambda: len(losses(tmp_path / "parts")) >= 3)
    assert "Goes on from step" in run(tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert sorted(losses(tmp_path / "whole")) == list(range(1, 11))
    one, other = (weights(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert same_state(one, other)
