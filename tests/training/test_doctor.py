"""`evit doctor`: every failure is made for real, and found; what is healthy is left in peace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import Doctor, tiny, trainer
from test_datasets import COLUMNS
from test_doctor_checks import EachFrame

import evit_models.training.loop
import evit_models.video
from evit_models import EfficientViT3D, create_model, load_model, save_checkpoint
from evit_models.checkpoints.keys import from_ours
from evit_models.cli import main
from evit_models.doctor.weights import blind_to_order, unsettled_norms
from evit_models.training.checkpointing import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored clips of noise whose class is their colour, so that it is learned at once."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    colours = np.array([[220, 60, 60], [60, 220, 60], [60, 60, 220], [200, 200, 200]])
    lines = []
    for index in range(40):
        noise = rng.integers(-50, 50, (5, 24, 32, 3)) + colours[index % 4]
        np.save(folder / f"{index:02d}.npy", noise.clip(0, 255).astype(np.uint8))
        lines.append(f"{index:02d}.npy {index % 4}\n")
    (folder / "list.txt").write_text("".join(lines))
    (folder / "classes.txt").write_text("left\nright\nup\ndown\n")
    return folder


@pytest.fixture(scope="module")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has learned the colours."""
    return list_run(
        tmp_path_factory.mktemp("run"), videos, batch_size=4, accumulation=1, epochs=16, lr=2e-3,
        eval_epochs=16, dropout=0.0, checkpoint_steps=0, class_names=str(videos / "classes.txt"),
    )  # fmt: skip


def verdicts(findings: dict[str, dict[str, str]], verdict: str) -> list[str]:
    return [name for name, one in findings.items() if one["verdict"] == verdict]


def changed(run: Path, folder: Path, change: Callable[[EfficientViT3D], object]) -> Path:
    """The run's weights, with something done to them."""
    model = load_model(run)
    with torch.no_grad():
        change(model)
    return save_checkpoint(model, folder / "weights.safetensors")


def list_run(folder: Path, videos: Path, **overrides: Any) -> Path:
    options = {
        "dataset": "list", "data": str(videos / "list.txt"), "eval_data": str(videos / "list.txt"),
        "epochs": 1, "checkpoint_steps": 1, **overrides,
    }  # fmt: skip
    trainer(folder, tiny(**options)).run()
    return folder


def test_a_healthy_run(run: Path, doctor: Doctor, capfd: pytest.CaptureFixture[str]) -> None:
    code, findings = doctor(run)
    assert code == 0
    assert verdicts(findings, "ok") == list(findings), "nothing is wrong, nothing is not checked"
    assert len(findings) == 16
    assert "none of 67 norms and biases decays" in findings["decay_on_norms"]["evidence"]
    assert main(["doctor", str(run)]) == 0
    out = capfd.readouterr().out
    assert "0 broken" in out.splitlines()[-1]
    assert "attention without time" in out


def test_healthy_weights(run: Path, videos: Path, doctor: Doctor) -> None:
    code, findings = doctor(run / "model.safetensors")
    assert code == 0
    assert len(verdicts(findings, "ok")) == 6
    assert findings["first_norm_inputs"]["verdict"] == "unchecked"
    code, findings = doctor(run / "best", "--data", videos / "list.txt")
    assert code == 0
    assert findings["first_norm_inputs"]["verdict"] == "ok", "after two batches"
    assert "tried on the videos" in findings["collapsed_predictions"]["evidence"]


def test_weights_that_are_not_finite(run: Path, tmp_path: Path, doctor: Doctor) -> None:
    path = changed(run, tmp_path, lambda m: m.stage2.blocks[0].expand.conv.weight.fill_(np.nan))
    code, findings = doctor(path)
    assert code == 1
    assert verdicts(findings, "broken") == ["non_finite_weights"]
    assert "1 of 197 tensors" in findings["non_finite_weights"]["evidence"]
    assert "stage2.blocks.0.expand.conv.weight" in findings["non_finite_weights"]["evidence"]


def test_dead_norms(run: Path, tmp_path: Path, doctor: Doctor) -> None:
    """A layer whose weights became 0 leaves its norm a variance of 0."""

    def kill(model: EfficientViT3D) -> None:
        layer: Any = model.stage1.downsample.depthwise
        layer.conv.weight.zero_()
        layer.norm.momentum = 1.0
        model.train()(torch.randn(2, 3, 5, 16, 16))

    code, findings = doctor(changed(run, tmp_path, kill))
    assert code == 1
    assert findings["dead_norms"]["verdict"] == "broken"
    assert "stage1.downsample.depthwise.norm" in findings["dead_norms"]["evidence"]
    part = changed(
        run, tmp_path, lambda m: m.stage3.blocks[0].attention.project.norm.weight[:3].zero_()
    )
    findings = doctor(part)[1]
    assert findings["dead_norms"]["verdict"] == "warning"
    assert "project.norm (3 of 64 channels)" in findings["dead_norms"]["evidence"]
    fresh = save_checkpoint(create_model("efficientvit3d_b0", 3), tmp_path / "fresh.safetensors")
    assert "as before the first step" in doctor(fresh)[1]["dead_norms"]["evidence"]


def test_norms_that_have_not_settled(
    videos: Path, tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training knows the colours after 40 steps; evaluation, as others train, gives one class."""
    short: dict[str, Any] = {"batch_size": 8, "accumulation": 1, "epochs": 8, "lr": 3e-3}
    ours = list_run(tmp_path / "ours", videos, **short)
    assert doctor(ours)[1]["unsettled_norms"]["verdict"] == "ok"
    result = json.loads((ours / "result.json").read_text())
    assert result["heads"]["class"]["top1"] > 0.9
    monkeypatch.setattr(evit_models.training.loop, "settle_norms", lambda model, step: None)
    folder = list_run(tmp_path / "theirs", videos, **short)
    code, findings = doctor(folder)
    assert code == 1
    assert findings["unsettled_norms"]["verdict"] == "broken"
    assert "after 40 batches" in findings["unsettled_norms"]["evidence"]
    settled = {"a.running_var": torch.full((4,), 1e-5), "a.num_batches_tracked": torch.tensor(20)}
    assert unsettled_norms(settled).verdict == "ok", "they began as other weights"
    chance = {"b.running_var": torch.full((4,), 0.15), "b.num_batches_tracked": torch.tensor(20)}
    assert unsettled_norms({**settled, **chance}).verdict == "ok", "so did these, seen together"
    assert unsettled_norms(chance).verdict == "broken"
    chance["b.num_batches_tracked"] += 1
    assert unsettled_norms({**settled, **chance}).verdict == "broken", "new beside old ones"


def test_attention_without_time(tmp_path: Path, doctor: Doctor) -> None:
    trainer(tmp_path, tiny(epochs=1, temporal_strides="original")).run()
    code, findings = doctor(tmp_path)
    assert code == 1
    assert findings["attention_without_time"]["verdict"] == "broken"
    assert findings["attention_without_time"]["evidence"] == (
        "of 5 frames (of training), strides 2,2,2,2,2 in time leave the attention 1 in stage3 and "
        "1 in stage4"
    )
    assert doctor(tmp_path, "--frames", 33)[1]["attention_without_time"]["verdict"] == "ok"
    assert doctor(tmp_path, "--frames", 32)[1]["attention_without_time"]["verdict"] == "warning"


def test_blind_to_order(run: Path, tmp_path: Path, doctor: Doctor) -> None:
    def inflated(model: EfficientViT3D) -> None:
        for weight in model.parameters():
            if weight.dim() == 5 and weight.shape[2] > 1:
                middle = weight.shape[2] // 2
                weight[:, :, :middle] = 0
                weight[:, :, middle + 1 :] = 0

    found = doctor(changed(run, tmp_path, inflated))[1]["blind_to_order"]
    assert (found["verdict"], "weigh a single frame" in found["evidence"]) == ("warning", True)
    model = create_model("efficientvit3d_b0", 3, temporal_kernel=1, aggregation_temporal_kernel=1)
    assert "no kernel sees" in blind_to_order(model.state_dict()).evidence


@pytest.mark.parametrize(
    ("mean", "std", "verdict"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "broken"),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "warning"),
    ],
)
def test_pixel_statistics(
    mean: tuple[float, ...], std: tuple[float, ...], verdict: str, run: Path, tmp_path: Path,
    doctor: Doctor,
) -> None:  # fmt: skip
    path = changed(run, tmp_path, lambda m: m.data_cfg.update(mean=mean, std=std))
    assert doctor(path)[1]["pixel_statistics"]["verdict"] == verdict


def test_pixel_statistics_that_are_not_those_of_the_start(
    run: Path, videos: Path, tmp_path: Path, doctor: Doctor
) -> None:
    start = changed(run, tmp_path, lambda m: m.data_cfg.update(mean=(0.5,) * 3, std=(0.5,) * 3))
    folder = list_run(tmp_path / "run", videos, pretrained=str(start))
    assert doctor(folder)[1]["pixel_statistics"]["verdict"] == "ok"
    model = load_model(folder)
    model.data_cfg.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    save_checkpoint(model, folder)
    code, findings = doctor(folder)
    assert code == 1
    assert findings["pixel_statistics"]["verdict"] == "broken"


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.0,) * 3, (1 / 255,) * 3), ((0.485, 0.456, 0.406), (0.0229, 0.0224, 0.0225))],
    ids=["bytes", "a point that slipped"],
)
def test_inputs_of_the_first_norm(
    mean: tuple[float, ...], std: tuple[float, ...], run: Path, videos: Path, tmp_path: Path,
    doctor: Doctor,
) -> None:  # fmt: skip
    path = changed(run, tmp_path, lambda m: m.data_cfg.update(mean=mean, std=std))
    code, findings = doctor(path, "--data", videos / "list.txt")
    assert code == 1
    assert findings["first_norm_inputs"]["verdict"] == "broken"


def test_collapsed_predictions(
    run: Path, videos: Path, tmp_path: Path, doctor: Doctor, capfd: pytest.CaptureFixture[str]
) -> None:
    """By trying, and from what `evit eval` wrote."""
    path = changed(run, tmp_path, lambda m: m.head.classifier.bias[3].fill_(100))
    code, findings = doctor(path, "--data", videos / "list.txt")
    assert code == 1
    assert verdicts(findings, "broken") == ["collapsed_predictions"]
    assert "100.0 % of 32 videos are" in findings["collapsed_predictions"]["evidence"]
    call = ["eval", "--checkpoint", path, "--data", videos / "list.txt", "--workers", 0]
    capfd.readouterr()
    assert main([str(word) for word in (*call, "--output", tmp_path)]) == 0
    assert "collapsed: 100.0 % of 40 videos are given one class" in capfd.readouterr().err
    code, findings = doctor(path, "--predictions", tmp_path / "predictions.jsonl")
    assert code == 1
    assert verdicts(findings, "broken") == ["collapsed_predictions"]


def test_decay_on_norms_of_other_scripts(run: Path, tmp_path: Path, doctor: Doctor) -> None:
    model = load_model(run)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    assert doctor(path)[1]["decay_on_norms"]["verdict"] == "broken"
    (newest, *_) = checkpoints(run / "checkpoints")
    code, findings = doctor(newest)
    assert (code, findings["decay_on_norms"]["verdict"]) == (0, "ok")
    assert "of 5 frames (of training)" in findings["attention_without_time"]["evidence"]


def test_augmentation_of_a_run(
    videos: Path, tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flip and directions, and a transform that draws for every frame, in one run."""
    folder = list_run(
        tmp_path, videos, flip=True, class_names=str(videos / "classes.txt"), mixup=0.5, cutmix=1.0
    )
    code, findings = doctor(folder)
    assert code == 1
    assert findings["augmentation_axis"]["verdict"] == "ok"
    assert (
        "2 of 4 classes have a direction: left, right"
        in (findings["mirrored_directions"]["evidence"])
    )
    monkeypatch.setattr(evit_models.video, "TrainTransform", EachFrame)
    assert doctor(folder)[1]["augmentation_axis"]["verdict"] == "broken"


def test_bad_videos_and_corrupt_checkpoints(videos: Path, tmp_path: Path, doctor: Doctor) -> None:
    broken = tmp_path / "videos"
    shutil.copytree(videos, broken)
    (broken / "03.npy").write_bytes(b"nothing")
    folder = list_run(tmp_path / "run", broken, epochs=2)
    newest, _ = checkpoints(folder / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[1000] ^= 1
    newest.write_bytes(content)
    findings = doctor(folder)[1]
    assert "03.npy" in findings["unreadable_videos"]["evidence"]
    assert findings["unreadable_videos"]["verdict"] == "warning"
    assert findings["corrupt_checkpoints"]["verdict"] == "warning"
    assert f"{newest.name} is corrupt" in findings["corrupt_checkpoints"]["evidence"]
    for file in broken.glob("*.npy"):
        file.unlink()
    findings = doctor(folder)[1]
    assert "none of its first 20 videos exists" in findings["augmentation_axis"]["evidence"]
    assert findings["first_norm_inputs"]["verdict"] == "unchecked"


def test_weights_of_others(tmp_path: Path, doctor: Doctor) -> None:
    """Image weights by timm's names: nothing is wrong with them, and nothing knows time yet."""
    torch.manual_seed(0)
    model = create_model("efficientvit3d_b0", 5, temporal_kernel=1, aggregation_temporal_kernel=1)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 5:
            tensor = tensor.squeeze(2)
        if name.endswith(("norm.weight", "running_var")):
            tensor = torch.rand_like(tensor) + 0.5
        tensors[from_ours(name, "timm", "B")] = tensor
    torch.save(tensors, tmp_path / "timm.pth")
    code, findings = doctor(tmp_path / "timm.pth")
    assert code == 0
    assert verdicts(findings, "warning") == []
    assert "weights are of images" in findings["blind_to_order"]["evidence"]
    assert "of 16 frames (the usual length)" in findings["attention_without_time"]["evidence"]


def test_a_run_on_epic_kitchens(
    videos: Path, tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two heads, mixed labels, a table of stored clips; norms as others train them."""
    monkeypatch.setattr(evit_models.training.loop, "settle_norms", lambda model, step: None)
    rows = [f"{n:02d},P01,P01_01,00:00:00.00,00:00:00.50,{n % 3},{n % 5}\n" for n in range(12)]
    table = tmp_path / "train.csv"
    table.write_text(",".join(COLUMNS) + "\n" + "".join(rows))
    folder = list_run(
        tmp_path / "run", videos, dataset="epic", data=str(table), eval_data=str(table),
        root=str(videos), target="verb_noun", mixup=0.2, batch_size=4,
    )  # fmt: skip
    findings = doctor(folder)[1]
    assert findings["augmentation_axis"]["verdict"] == "ok"
    assert findings["decay_on_norms"]["verdict"] == "ok"
    assert "has not settled" in findings["first_norm_inputs"]["evidence"], "after two batches"
    assert "noun: " in findings["collapsed_predictions"]["evidence"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.pt",), "none.pt: no such file or folder"),
        (("LIST",), "a checkpoint ends in"),
        (("EMPTY",), "empty: has no weights and is no run"),
        (("BEGUN",), "has neither weights nor a checkpoint"),
        (("RUN", "--data", "none.txt"), "none.txt: cannot be opened"),
        (("RUN", "--predictions", "none.jsonl"), "none.jsonl: No such file"),
        (("RUN", "--predictions", "LIST"), "line 1: is no prediction"),
        (("RESNET",), "is no EfficientViT that is known here"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], words: str, run: Path, videos: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("empty", "begun"):
        (tmp_path / name).mkdir()
    shutil.copy(run / "config.toml", tmp_path / "begun")
    torch.save({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, tmp_path / "resnet.pt")
    places = {
        "RUN": run, "LIST": videos / "list.txt", "EMPTY": tmp_path / "empty",
        "BEGUN": tmp_path / "begun", "RESNET": tmp_path / "resnet.pt",
    }  # fmt: skip
    capfd.readouterr()
    code = main(["doctor", *(str(places.get(word, word)) for word in arguments)])
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
