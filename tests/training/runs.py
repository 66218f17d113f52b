"""Tiny training runs: in this process, in one of their own, and several under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from evit_models.training import TrainConfig, Trainer, load_config
from evit_models.training.datasets import make_datasets, make_mix
from evit_models.training.distributed import Ranks
from evit_models.training.logging import read_log
from evit_models.video.datasets import ClipDataset

#: Three steps an epoch of 40 clips, twelve steps in all, about 20 ms each.
TINY: dict[str, Any] = {
    "model": "efficientvit3d_b0",
    "dataset": "motion",
    "motion_clips": 40,
    "frames": 5,
    "size": 16,
    "batch_size": 6,
    "accumulation": 2,
    "epochs": 4,
    "eval_epochs": 2,
    "workers": 0,
    "checkpoint_steps": 1,
    "drop_path": 0.2,
    "dropout": 0.2,
    "ema_decay": 0.9,
    "label_smoothing": 0.1,
}
STEPS = 12

#: Calls `evit doctor`: the exit code, and its findings by name.
Doctor = Callable[..., tuple[int, dict[str, dict[str, str]]]]

# One thread: tensors are tiny here, and other work on the machine makes two wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def tiny(**overrides: Any) -> TrainConfig:
    """The same in this process, where nobody kills it: a checkpoint at the end of epochs only."""
    return load_config(overrides={**TINY, "checkpoint_steps": 0, **overrides})


def trainer(
    folder: Path,
    config: TrainConfig | None = None,
    *,
    train_set: ClipDataset | None = None,
    group: Ranks | None = None,
    observe: Callable[[str, dict[str, Any]], object] = lambda kind, facts: None,
) -> Trainer:
    config = config or tiny()
    clips, held_out = make_datasets(config)
    return Trainer(
        config,
        folder,
        train_set or clips,
        held_out,
        ranks=group,
        mix=make_mix(config, clips),
        observe=observe,
    )


def command(folder: Path, *, processes: int = 1, restarts: int = 0, **overrides: Any) -> list[str]:
    """The command line that trains a tiny run in a folder."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in {**TINY, **overrides}.items()]
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--monitor-interval", "0.1"]
        start += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return [
        *start,
        *("-m", "evit_models.cli", "train", "--output", str(folder)),
        *(part for pair in pairs for part in ("--set", pair)),
    ]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Starts a command as the head of a process group of its own."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**ENVIRONMENT, **environment},
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """Waits for a command that must succeed, and returns what it said."""
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, out
    return out


def losses(folder: Path) -> dict[int, float]:
    """The loss of every step in a run's log."""
    return {row["step"]: row["loss"] for row in read_log(folder) if row["kind"] == "step"}


def weights(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file)


def assert_same_run(folder: Path, reference: Path) -> None:
    """Two runs had bitwise the same losses, figures and weights."""
    assert losses(folder) == losses(reference)
    assert sorted(losses(folder)) == list(range(1, STEPS + 1))
    figures = [
        [(row["step"], row["heads"]) for row in read_log(one) if row["kind"] == "evaluation"]
        for one in (folder, reference)
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) == 2
    for name in ("model.safetensors", "best/model.safetensors"):
        assert same_state(weights(folder / name), weights(reference / name)), name


def same_state(one: Any, other: Any) -> bool:
    """Whether two nests of tensors and values have the same bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(one == other)
