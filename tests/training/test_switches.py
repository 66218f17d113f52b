"""Switches of a run that hand it to other tools: the compiler, TensorBoard, synchronised norms."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from runs import STEPS, losses, tiny, trainer, weights

from evit_models import load_model
from evit_models.training import ConfigError

BOARD = "torch.utils.tensorboard"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tests/conftest.py restores the number


def test_compiled_it_is_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The graph is taken as ever, and run as it is: what the compiler makes of it is its own matter.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    graphs = []
    monkeypatch.setattr(
        torch._dynamo.callback_handler,
        "run_start_callbacks",
        lambda *arguments: graphs.append(arguments),
    )
    settings = {"epochs": 2, "eval_epochs": 1, "drop_path": 0.0, "dropout": 0.0}
    for name, switched in (("plain", False), ("compiled", True)):
        trainer(tmp_path / name, tiny(**settings, compile=switched)).run()
        # One for training and one for evaluation: nothing in the network cuts them in pieces.
        assert len(graphs) == (2 if switched else 0)
    plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert list(compiled) == list(plain)
    assert list(compiled.values()) == pytest.approx(list(plain.values()), rel=1e-4)
    # Weights that anybody can load, without the compiler's prefixes.
    files = [tmp_path / name / "model.safetensors" for name in ("plain", "compiled")]
    assert list(weights(files[0])) == list(weights(files[1]))
    load_model(files[1])


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, dict[int, float]] = {}
    closed: list[bool] = []

    def writer(folder: str) -> Any:
        assert Path(folder).parent == tmp_path
        return SimpleNamespace(
            add_scalar=lambda name, value, step: written.setdefault(name, {}).update({step: value}),
            close=lambda: closed.append(True),
        )

    board = ModuleType(BOARD)
    board.SummaryWriter = writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, BOARD, board)
    trainer(tmp_path, tiny(tensorboard=True)).run()
    assert written["step/loss"] == losses(tmp_path)
    assert len(written["step/lr"]) == STEPS
    assert any(name.startswith("evaluation/") for name in written)
    assert closed


def test_without_tensorboard_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, BOARD, None)
    with pytest.raises(ConfigError, match=r"tensorboard: cannot be used: .*'evit\[tensorboard\]'"):
        trainer(tmp_path, tiny(tensorboard=True)).run()


def test_norms_are_synchronised_on_gpus_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sync_norm: PyTorch has synchronised norms on GPUs only"):
        trainer(tmp_path, tiny(sync_norm=True))
