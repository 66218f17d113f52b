"""The preset "motion" in small: a network learns what only the order of frames can tell."""

from __future__ import annotations

from pathlib import Path

from runs import trainer

from evit_models.training import load_config


def test_the_order_of_frames_is_learnt(tmp_path: Path) -> None:
    """Without the order nothing gets more than half of these clips right."""
    small = {"size": 32, "epochs": 4, "eval_epochs": 4}
    run = trainer(tmp_path, load_config(preset="motion", overrides=small))
    result = run.run()
    assert run.eval_set is not None
    assert len(run.eval_set) == 120
    assert result["heads"]["class"]["top1"] > 0.8
