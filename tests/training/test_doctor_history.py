"""`evit doctor` on how a run went: every failure is made for real, and found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Doctor, tiny, trainer
from test_loop import Poisoned

import evit_models.training.optimizer
from evit_models.doctor.history import data_bound
from evit_models.training import TrainingError
from evit_models.video.datasets import MotionClips, Sample

pytestmark = pytest.mark.usefixtures("one_thread")


def test_decay_on_norms(tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that decays everything alike, as many training scripts do."""

    def all_alike(model: torch.nn.Module, weight_decay: float, _: float) -> list[dict[str, Any]]:
        names, parameters = zip(*model.named_parameters(), strict=True)
        rest = {"weight_decay": weight_decay, "lr_scale": 1.0}
        return [{"params": list(parameters), "names": list(names), **rest}]

    monkeypatch.setattr(evit_models.training.optimizer, "parameter_groups", all_alike)
    for optimizer in ("adamw", "sgd"):
        trainer(tmp_path / optimizer, tiny(epochs=1, optimizer=optimizer)).run()
        code, findings = doctor(tmp_path / optimizer)
        assert code == 1
        assert "67 of 67 norms and biases decay" in findings["decay_on_norms"]["evidence"]


def test_a_loss_that_never_fell(tmp_path: Path, doctor: Doctor) -> None:
    trainer(tmp_path, tiny(epochs=4, batch_size=4, accumulation=1, motion_clips=24, lr=0.0)).run()
    code, findings = doctor(tmp_path)
    assert code == 1
    assert findings["flat_loss"]["verdict"] == "broken"


def test_training_that_waits_for_clips(tmp_path: Path, doctor: Doctor) -> None:
    class Slow(MotionClips):
        def __getitem__(self, index: int) -> Sample:
            time.sleep(0.02)
            return super().__getitem__(index)

    trainer(tmp_path, tiny(epochs=1), train_set=Slow("train", 40, 5, 16)).run()
    findings = doctor(tmp_path)[1]
    assert findings["data_bound"]["verdict"] == "warning"
    assert "evit prepare" in findings["data_bound"]["advice"]
    row = {"kind": "step", "clips": 8, "clips_per_second": 4.0, "data_share": 0.1}
    assert data_bound([row], 2).evidence == "10.0 % of the time went into waiting for clips"


def test_a_run_that_ended_early(tmp_path: Path, doctor: Doctor) -> None:
    """Steps that were skipped, and no weights yet but those of a checkpoint."""
    config = tiny(max_skipped=2, epochs=2, checkpoint_steps=1)
    with pytest.raises(TrainingError):
        trainer(tmp_path, config, train_set=Poisoned("train", 40, 5, 16)).run()
    findings = doctor(tmp_path)[1]
    assert findings["skipped_steps"]["verdict"] == "warning"
    assert "2 of 3 steps" in findings["skipped_steps"]["evidence"]
    assert findings["collapsed_predictions"]["verdict"] == "unchecked"
