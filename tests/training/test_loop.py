"""The loop in this process: it learns, it is exact, and it skips what is not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import STEPS, losses, same_state, tiny, trainer, weights

from evit_models import create_model, load_model
from evit_models.training import ConfigError, Trainer, TrainingError, load_config, run
from evit_models.training.checkpointing import checkpoints, load_state
from evit_models.training.logging import read_log
from evit_models.video.datasets import DummyClips, MotionClips, Sample


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tests/conftest.py restores the number


class Poisoned(MotionClips):
    """Clips of which those after the first few are not finite."""

    good = 12

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked = 0

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        self.asked += 1
        if self.asked > self.good:
            sample["video"] = torch.full_like(sample["video"], float("inf"))
        return sample


def test_it_learns(tmp_path: Path) -> None:
    """Eight clips by heart, among four classes: nothing but a wrong loop could fail."""
    config = tiny(
        batch_size=8, accumulation=1, epochs=40, eval_epochs=40, checkpoint_steps=0, lr=3e-3,
        drop_path=0.0, dropout=0.0, label_smoothing=0.0, ema_decay=0.0,
    )  # fmt: skip
    clips = DummyClips(8, 5, 16, 4)
    clips._video = torch.randn(8, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    clips.__class__ = type(
        "Eight",
        (DummyClips,),
        {
            "__getitem__": lambda self, index: Sample(
                video=self._video[index], label=self.labels[index], index=index, valid=True,
                source="", error="",
            )
        },
    )  # fmt: skip
    folder = tmp_path / "lr0.003"  # a dot makes no file of a folder
    Trainer(config, folder, clips).run()
    curve = list(losses(folder).values())
    assert curve[0] > 1.0
    assert curve[-1] < 0.1
    assert (folder / "model.safetensors").is_file()


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    """Without norms and random layers, two batches of three are one of six."""
    found = []
    for batch, accumulation in ((6, 1), (3, 2)):
        config = tiny(
            batch_size=batch, accumulation=accumulation, epochs=1, drop_path=0.0, dropout=0.0,
            freeze="norm", clip_norm=0.5, ema_decay=0.0,
        )  # fmt: skip
        folder = tmp_path / str(batch)
        trainer(folder, config).run()
        found.append((losses(folder), weights(folder / "model.safetensors")))
    (loss, one), (other_loss, other) = found
    assert list(loss.values()) == pytest.approx(list(other_loss.values()), rel=1e-5)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-5)


def test_what_is_not_finite_is_skipped_and_leaves_no_trace(tmp_path: Path) -> None:
    """After poisoned steps the state is that of the step before them, norms' statistics too."""
    config = tiny(max_skipped=2, epochs=2, checkpoint_steps=1)
    run = trainer(tmp_path, config, train_set=Poisoned("train", 40, 5, 16))
    with pytest.raises(TrainingError, match="2 steps in a row") as error:
        run.run()
    assert "the last good checkpoint is" in str(error.value)
    assert "step-00000002.pt" in str(error.value), "the checkpoint of the first skipped step"
    assert [row["step"] for row in read_log(tmp_path) if row["kind"] == "skip"] == [2, 3]
    assert sorted(losses(tmp_path)) == [1]
    first, second = (
        torch.load(path, weights_only=True)
        for path in reversed(checkpoints(tmp_path / "checkpoints"))
    )
    assert second["skipped"] == [1, 1]
    for part in ("model", "optimizer", "average"):
        assert same_state(_without_lr(first[part]), _without_lr(second[part])), part
    assert all(torch.isfinite(t).all() for t in second["model"].values() if t.is_floating_point())


def test_one_bad_step_does_not_end_a_run(tmp_path: Path) -> None:
    class Once(Poisoned):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return sample if self.asked <= 24 else MotionClips.__getitem__(self, index)

    config = tiny(max_skipped=2, epochs=2)
    trainer(tmp_path, config, train_set=Once("train", 40, 5, 16)).run()
    assert [row["step"] for row in read_log(tmp_path) if row["kind"] == "skip"] == [2]
    assert sorted(losses(tmp_path)) == [1, 3, 4, 5, 6]
    assert read_log(tmp_path)[-1]["skipped"] == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision: str, tmp_path: Path) -> None:
    """fp16 finds the scale of its loss by steps that it skips; those do not end a run."""
    config = tiny(precision=precision, epochs=4, max_skipped=1)
    trainer(tmp_path, config).run()
    assert sorted(losses(tmp_path)) == list(range(1, STEPS + 1))
    assert _skips(tmp_path) < STEPS
    found = load_state(tmp_path / "checkpoints", print)
    assert found is not None
    assert ("scale" in found[1]["scaler"]) == (precision == "fp16")


@pytest.mark.parametrize(
    "overrides",
    [
        {"optimizer": "sgd", "lr": 0.05},
        {"activation_checkpointing": True},
        {"freeze": "backbone"},
        {"freeze": "spatial", "layer_decay": 0.7},
        {"temporal_strides": "original", "mixup": 0.5, "cutmix": 1.0},
    ],
    ids=lambda value: " ".join(value),
)
def test_options_train_and_resume(overrides: dict[str, Any], tmp_path: Path) -> None:
    """Stopped at the second epoch and begun again, the end is the same."""
    config = tiny(**overrides, epochs=2)
    trainer(tmp_path / "whole", config).run()

    def stop(kind: str, facts: dict[str, Any]) -> None:
        if kind == "step" and facts["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", config, observe=stop).run()
    trainer(tmp_path / "parts", config).run()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same_state(
        *(weights(tmp_path / name / "model.safetensors") for name in ("parts", "whole"))
    )


def test_frozen_weights_stay(tmp_path: Path) -> None:
    config = tiny(freeze="backbone", epochs=1, ema_decay=0.0)
    run = trainer(tmp_path, config)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.run()
    moved = [n for n, v in run.model.state_dict().items() if not torch.equal(v, before[n])]
    assert moved
    assert all(name.startswith("head.") for name in moved)


def test_weights_know_what_they_were_trained_on(tmp_path: Path) -> None:
    trainer(tmp_path, tiny(epochs=1)).run()
    for folder in (tmp_path, tmp_path / "best"):
        model = load_model(folder)
        assert model.default_cfg["input_size"] == (3, 5, 16, 16)
        assert model.default_cfg["class_names"] == MotionClips("train").class_names
        assert json.loads((folder / "config.json").read_text())["default_cfg"]["stride"] is None
    other = create_model("efficientvit3d_b0", 3, pretrained=tmp_path)
    assert "class_names" not in other.default_cfg, "a fresh classifier has no names"
    assert other.default_cfg["input_size"] == (3, 5, 16, 16)


def test_a_run_leaves_pictures_and_figures(tmp_path: Path) -> None:
    result = trainer(tmp_path, tiny(epochs=2, eval_epochs=1)).run()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    row = result["heads"]["class"]
    assert row["clips"] == 8
    assert row["majority"] == 1 / 8
    assert load_config(tmp_path / "config.toml") == tiny(epochs=2, eval_epochs=1)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"lr": 0.5}, "holds a run of another configuration: lr is 0.5, was 0.001"),
        ({"model": "efficientvit3d_b1"}, "model is 'efficientvit3d_b1'"),
    ],
)
def test_another_run_is_not_continued(
    overrides: dict[str, Any], words: str, tmp_path: Path
) -> None:
    trainer(tmp_path, tiny(epochs=1)).run()
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, tiny(**{"epochs": 1, **overrides}))


def test_two_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0.3)
    trainer(tmp_path, tiny(epochs=1)).run()
    other = trainer(tmp_path, tiny(epochs=1))
    with (
        trainer(tmp_path, tiny(epochs=1)).run_folder.held(),
        pytest.raises(ConfigError, match=f"another process is training in {tmp_path}"),
    ):
        other.run()
    other.run()


def test_other_data_is_not_continued(tmp_path: Path) -> None:
    trainer(tmp_path, tiny(epochs=1)).run()
    with pytest.raises(ConfigError, match="40 training clips, now there are 50"):
        trainer(tmp_path, tiny(epochs=1), train_set=MotionClips("train", 50, 5, 16)).run()


def test_classes_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eval_data"):
        Trainer(tiny(), tmp_path, DummyClips(40, 5, 16, 3), DummyClips(8, 5, 16, 4, training=False))
    with pytest.raises(ConfigError, match="batch_size: a step takes 12 clips"):
        Trainer(tiny(), tmp_path, DummyClips(11, 5, 16, 3))


def test_workers_do_not_change_the_run(tmp_path: Path) -> None:
    for workers in (0, 2):
        trainer(tmp_path / str(workers), tiny(workers=workers, epochs=2)).run()
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def _without_lr(state: Any) -> Any:
    if isinstance(state, dict):
        return {k: _without_lr(v) for k, v in state.items() if k != "lr"}
    return [_without_lr(v) for v in state] if isinstance(state, list) else state


def _skips(folder: Path) -> int:
    return sum(row["kind"] == "skip" for row in read_log(folder))
