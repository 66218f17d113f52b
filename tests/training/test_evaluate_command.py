"""`evit eval`: its figures by another way, its files, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import finish, start, tiny, trainer
from test_datasets import epic
from torch.nn.modules.batchnorm import _BatchNorm

from evit_models import create_model, load_model, save_checkpoint
from evit_models.cli import main
from evit_models.training.logging import read_log
from evit_models.training.marginals import epic_scores
from evit_models.training.results import most_confused, read_predictions
from evit_models.video.datasets import EpicKitchens, MotionClips

Call = Callable[..., tuple[int, str, str]]

CLIP = ("--frames", 5, "--size", 16, "--workers", 0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tests/conftest.py restores the number


@pytest.fixture
def evit(capfd: pytest.CaptureFixture[str]) -> Call:
    """Calls the command and returns its code, what it printed, and its one line of error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on motion clips."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, tiny(epochs=1)).run()
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven mp4 files, three of class 0, with one that is no video; and their list."""
    folder = tmp_path_factory.mktemp("videos")
    MotionClips("train", 7, 9, 32).write(folder)
    (folder / "00005.mp4").write_bytes(b"nothing")
    labels = (0, 0, 1, 2, 0, 3, 4)
    (folder / "list.txt").write_text("".join(f"0000{n}.mp4 {c}\n" for n, c in enumerate(labels)))
    return folder


def weights(folder: Path, classes: int = 10, **data_cfg: Any) -> Path:
    """Weights whose predictions differ from clip to clip: norms have seen some noise."""
    torch.manual_seed(1)
    model = create_model("efficientvit3d_b0", classes)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, 5, 32, 32))
        model.head.classifier.weight.mul_(20)  # type: ignore[operator, union-attr]
    model.data_cfg.update(data_cfg)
    return save_checkpoint(model, folder / "weights.safetensors")


def test_a_run_gets_the_figures_of_its_training(run: Path, evit: Call) -> None:
    code, out, err = evit("eval", run, "--json")
    assert code == 0, err
    facts = json.loads(out)
    logged = [row for row in read_log(run) if row["kind"] == "evaluation"][-1]["heads"]["class"]
    row = facts["heads"]["class"]
    for key in ("top1", "top5", "mean_class", "majority", "loss", "clips"):
        assert row["videos"][key] == logged[key], key
    assert row["majority"] == {
        "class": 0, "name": "left", "top1": 1 / 8, "top5": 5 / 8, "mean_class": 1 / 8,
    }  # fmt: skip
    assert (facts["videos"], facts["evaluated"], facts["unreadable"]) == (8, 8, [])
    assert json.loads((run / "evaluation" / "figures.json").read_text())["heads"] == facts["heads"]


def test_files_say_the_same_in_both_forms(run: Path, tmp_path: Path, evit: Call) -> None:
    rows = {}
    for form in ("jsonl", "csv"):
        code, out, err = evit("eval", run, "--output", tmp_path / form, "--format", form)
        assert code == 0, err
        rows[form] = read_predictions(tmp_path / form / f"predictions.{form}")
        assert f"predictions.{form}, confusion.csv, confusion.png" in out
    assert rows["csv"] == rows["jsonl"]
    assert len(rows["csv"]) == 8
    figures = json.loads((tmp_path / "csv" / "figures.json").read_text())["heads"]["class"]
    right = sum(row["label"] == row["class"] for row in rows["csv"])
    assert figures["videos"]["top1"] == right / 8
    line = json.loads((tmp_path / "jsonl" / "predictions.jsonl").read_text().splitlines()[3])
    assert (line["index"], line["source"], line["label"], line["name"]) == (
        3, "motion 3", 3, "down",
    )  # fmt: skip
    shares = [one["probability"] for one in line["top5"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1
    table = list(csv.reader((tmp_path / "csv" / "confusion.csv").open()))
    assert table[0][1:] == MotionClips("test").class_names
    counts = [[int(cell) for cell in row[1:]] for row in table[1:]]
    assert [sum(row) for row in counts] == [1] * 8 + [0, 0]
    assert sum(counts[n][n] for n in range(10)) == right
    assert (tmp_path / "csv" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_videos_with_several_views(videos: Path, tmp_path: Path, evit: Call) -> None:
    """The one that cannot be read is counted and named, and all shares are of the others."""
    path = weights(tmp_path)
    arguments = ("eval", "--checkpoint", path, "--data", videos / "list.txt", *CLIP)
    code, out, err = evit(*arguments, "--views", 2, "--crops", 3, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["videos"], facts["evaluated"]) == (7, 6)
    assert len(facts["unreadable"]) == 1
    assert "00005.mp4: is not a video" in facts["unreadable"][0]
    row = facts["heads"]["class"]
    assert (row["videos"]["clips"], row["views"]["clips"]) == (6, 36)
    assert row["majority"]["top1"] == row["videos"]["majority"] == 3 / 6
    assert "files" not in facts
    code, out, err = evit(*arguments, "--views", 2, "--output", tmp_path / "out")
    assert code == 0
    assert "6 of 7 videos, 2 views of 5 frames, 16 x 16" in out
    for line in ("per video", "per view", "always the commonest (class 0)"):
        assert line in out
    assert "1 of 7 videos could not be read" in err
    sources = [row["index"] for row in _lines(tmp_path / "out" / "predictions.jsonl")]
    assert sources == [0, 1, 2, 3, 4, 6]


def test_weights_say_how_clips_are_made(videos: Path, tmp_path: Path, evit: Call) -> None:
    path = weights(tmp_path, input_size=(3, 6, 32, 32), stride=2)
    call = ("eval", "--checkpoint", path, "--data", videos / "list.txt", "--workers", 0, "--json")
    facts = json.loads(evit(*call)[1])
    assert (facts["frames"], facts["size"], facts["stride"]) == (6, 32, 2)
    facts = json.loads(evit(*call, "--stride", 0, "--precision", "bf16")[1])
    assert (facts["frames"], facts["stride"], facts["precision"]) == (6, None, "bf16")


def test_marginals_by_hand() -> None:
    actions = [(0, 1), (2, 1), (2, 0)]
    sizes = {"verb": 4, "noun": 3, "action": 3}
    shares = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]])
    found = epic_scores({"class": 3}, actions, sizes)(shares.log())
    torch.testing.assert_close(found["action"], shares)
    expected = {
        "verb": [[[0.5, 0, 0.5, 0], [0.1, 0, 0.9, 0]]],
        "noun": [[[0.2, 0.8, 0], [0.7, 0.3, 0]]],
    }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values))
    verb, noun = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.3, 0.2])
    logits = torch.cat([verb.log(), noun.log()])[None, None]
    found = epic_scores({"verb": 4, "noun": 3}, actions, sizes)(logits)
    torch.testing.assert_close(found["verb"][0, 0], verb)
    torch.testing.assert_close(found["action"][0, 0], torch.tensor([0.03, 0.09, 0.15]))
    with pytest.raises(ValueError, match="'class': 4"):
        epic_scores({"class": 4}, actions, sizes)
    with pytest.raises(ValueError, match="heads are"):
        epic_scores({"noun": 3, "verb": 3}, actions, sizes)


@pytest.mark.parametrize("heads", [None, {"verb": 97, "noun": 300}], ids=["action", "verb_noun"])
def test_epic_kitchens(
    heads: dict[str, int] | None, videos: Path, tmp_path: Path, evit: Call
) -> None:
    """Verb, noun and action of a model with one head or two, against a loop by hand."""
    train, held_out = epic(tmp_path, videos)
    path = weights(tmp_path, 397 if heads else 8, **({"heads": heads} if heads else {}))
    output = tmp_path / "out"
    code, _, err = evit(
        "eval", "--checkpoint", path, "--data", held_out, "--root", tmp_path, *CLIP,
        "--actions", train, "--actions", held_out, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    names = ("verb", "noun", "action")
    clips = EpicKitchens(
        held_out, tmp_path, targets=names, action_csvs=(train, held_out), training=False
    )
    model = load_model(path).eval()
    rows = _lines(output / "predictions.jsonl")
    assert [row["head"] for row in rows] == [n for n in names for _ in range(4)]
    with torch.inference_mode():
        from evit_models.video import ClipSampling, ClipTransform

        clips.sampling, clips.transform = ClipSampling(5), ClipTransform(16)
        for index in range(4):
            logits = model(clips[index]["video"])[0]
            if heads:
                verb, noun = logits[:97].softmax(0), logits[97:].softmax(0)
                action = torch.stack([verb[v] * noun[n] for v, n in clips.actions])
            else:
                action, verb, noun = logits.softmax(0), torch.zeros(97), torch.zeros(300)
                for share, (v, n) in zip(action, clips.actions, strict=True):
                    verb[v] += share
                    noun[n] += share
            for name, shares in zip(names, (verb, noun, action), strict=True):
                row = rows[names.index(name) * 4 + index]
                assert row["label"] == clips.label_of(index)[name]  # type: ignore[index]
                assert row["id"] == f"P01_01_{index}"
                best = row["top5"][0]
                assert best["probability"] == pytest.approx(float(shares.max()), abs=1e-5)
                assert best["class"] == int(shares.argmax())
                if name != "action":
                    assert best["probability"] > 2 / len(shares), "the model has an opinion"
                else:
                    verb_noun = clips.actions[best["class"]]
                    assert best["name"] == "{}:{}".format(*verb_noun)
    assert sorted(path.name for path in output.glob("confusion-*")) == [
        f"confusion-{name}.{suffix}" for name in sorted(names) for suffix in ("csv", "png")
    ]


@pytest.mark.parametrize(
    ("data", "classes", "known", "words"),
    [
        ("list.txt", 3, {}, "line 6: label is 3, expected 0 to 2; the weights"),
        ("list.txt", 397, {"heads": {"verb": 97, "noun": 300}}, "heads of 97 verbs and 300 nouns"),
        ("folders", 3, {}, "folders has 2 classes, the weights"),
        ("folders", 2, {"class_names": ["a", "c"]}, "holds a folder 'b' that class_names lacks"),
        ("motion", 3, {}, "the set motion has 10 classes, the weights"),
        ("motion", 10, {"class_names": list("abcdefghij")}, "calls class 0 'left'"),
        ("test.csv", 9, {}, "has 8 actions by its tables, the weights"),
        ("test.csv", 8, {"heads": {"verb": 5, "noun": 3}}, "has 97 verbs and 300 nouns"),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_other_classes_are_refused(
    data: str, classes: int, known: dict[str, Any], words: str, videos: Path, tmp_path: Path,
    evit: Call,
) -> None:  # fmt: skip
    epic(tmp_path, videos)
    for name in "ab":
        (tmp_path / "folders" / name).mkdir(parents=True)
        shutil.copy(videos / "00000.mp4", tmp_path / "folders" / name)
    path = weights(tmp_path, classes, **known)
    where = videos / data if data == "list.txt" else tmp_path / data
    chosen = ("--dataset", data) if data == "motion" else ("--data", where)
    if data.endswith(".csv"):
        chosen += ("--root", tmp_path, "--actions", tmp_path / "train.csv")
    code, out, err = evit("eval", "--checkpoint", path, *chosen, *CLIP)
    assert (code, out) == (2, "")
    assert words in err
    assert known or f"weights.safetensors have {classes}" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give the folder of a run, or --checkpoint"),
        (("RUN", "--checkpoint", "WEIGHTS"), "one of them"),
        (("none",), "none: is no folder of a run"),
        (("WEIGHTS",), "weights alone are given by --checkpoint"),
        (("EMPTY",), "it has no config.toml"),
        (("UNFINISHED",), "has no weights yet"),
        (("RUN", "--model", "efficientvit3d_b0"), "--model: is for --checkpoint"),
        (("RUN", "--views", "2"), "--views, --crops: have no use"),
        (("RUN", "--dataset", "list"), "--data: is missing"),
        (("RUN", "--dataset", "set"), "dataset must be one of list, folder"),
        (("RUN", "--output", "WEIGHTS"), "--output: cannot make"),
        (("--checkpoint", "WEIGHTS"), "--data: is missing"),
        (("--checkpoint", "WEIGHTS", "--best"), "--best: is for a run"),
        (("--checkpoint", "none.pt", "--data", "LIST"), "none.pt: cannot be opened"),
        (("--checkpoint", "WEIGHTS", "--data", "LIST", "--labels", "NAMES"), "has 2 classes"),
        (("--checkpoint", "WEIGHTS", "--data", "BAD"), "none of the 1 videos could be read"),
        (("--checkpoint", "WEIGHTS", "--data", "LIST", "--device", "abacus"), "is no device"),
        (("--checkpoint", "WEIGHTS", "--data", "LIST", "--backend", "magic"), "'magic' is none"),
    ],
    ids=lambda value: " ".join(value)[:32] if isinstance(value, tuple) else None,
)
def test_mistakes(
    arguments: tuple[str, ...], words: str, run: Path, videos: Path, tmp_path: Path, evit: Call
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    shutil.copy(run / "config.toml", tmp_path / "unfinished")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    (tmp_path / "bad.txt").write_text(f"{videos / '00005.mp4'} 0\n")
    places = {
        "RUN": run, "WEIGHTS": weights(tmp_path), "LIST": videos / "list.txt",
        "EMPTY": tmp_path / "empty", "UNFINISHED": tmp_path / "unfinished",
        "NAMES": tmp_path / "names.txt", "BAD": tmp_path / "bad.txt",
    }  # fmt: skip
    code, out, err = evit("eval", *(places.get(word, word) for word in arguments), "--workers", 0)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("evit: error:")]
    assert len(lines) == 1
    assert words in lines[0]


def test_two_processes_are_one(videos: Path, tmp_path: Path, evit: Call) -> None:
    """Seven videos, one of them bad, in shards of four and three: every one counts once."""
    path = weights(tmp_path)
    call = (
        "eval", "--checkpoint", path, "--data", videos / "list.txt", *CLIP, "--batch-size", 1,
        "--json",
    )  # fmt: skip
    alone = _rounded(evit(*call)[1])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [sys.executable, *launcher, "-m", "evit_models.cli", *map(str, call)]
    out = finish(start(words))
    assert _rounded(out[out.index("{\n") : out.rindex("}") + 1]) == alone


def _rounded(text: str) -> Any:
    """What a command printed; matrix products differ in their last bits from process to process."""
    return json.loads(text, parse_float=lambda number: round(float(number), 5))


def test_help_is_in_the_order_of_need(evit: Call) -> None:
    out = evit("--help")[1]
    shown = [line.split()[0] for line in out[out.index("Commands:") :].splitlines()[1:]]
    expected = "info, models, classify, prepare, train, eval, doctor, bench, demo"
    assert ", ".join(shown) == expected


def test_most_confused() -> None:
    matrix = torch.tensor([[5, 2, 0], [0, 1, 3], [0, 0, 4]]).numpy()
    assert most_confused(matrix) == [(1, 2, 3), (0, 1, 2)]


def test_predictions_of_others_are_refused(tmp_path: Path) -> None:
    for name, text, line in (("a.jsonl", "{}\n", 1), ("a.csv", "label\n3\n", 2)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name}, line {line}: is no prediction"):
            read_predictions(tmp_path / name)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
