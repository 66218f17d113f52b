"""What two processes agree on: steps that are skipped, and shares of a model (FSDP2)."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import losses, same_state, tiny, trainer, weights

from evit_models import load_model
from evit_models.training import ConfigError, TrainConfig, TrainingError, load_config, ranks
from evit_models.training.checkpointing import checkpoints, load_state
from evit_models.training.distributed import Ranks
from evit_models.training.logging import read_log
from evit_models.video.datasets import MotionClips, Sample

CLIPS_A_STEP = 6  # of each process


class Disturbed(MotionClips):
    """Clips that are not finite in some steps, or that end the process before one."""

    poisoned: tuple[int, ...] = ()
    stop: int = 0
    asked = 0

    def __getitem__(self, index: int) -> Sample:
        step = self.asked // CLIPS_A_STEP + 1
        self.asked += 1
        if step == self.stop:
            raise KeyboardInterrupt
        sample = super().__getitem__(index)
        if step in self.poisoned:
            sample["video"] = torch.full_like(sample["video"], float("inf"))
        return sample


def pair(**overrides: Any) -> TrainConfig:
    return tiny(**{"batch_size": 3, "epochs": 2, **overrides})


def scenarios(folder: Path, group: Ranks) -> dict[str, Any]:
    """Everything that is tried in two processes; they are started only once."""

    def run(name: str, config: TrainConfig, **disturbance: Any) -> Any:
        clips = Disturbed("train", 40, 5, 16)
        for key, value in disturbance.items():
            setattr(clips, key, value)
        try:
            run = trainer(folder / name, config, train_set=clips, group=group)
            run.run()
        except (TrainingError, KeyboardInterrupt) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        own = sum(p.to_local().numel() for p in run.parameters if hasattr(p, "to_local"))
        return {"skipped": run.skipped, "step": run.step, "own": own}

    # Only one process meets what is not finite.
    bad = {"poisoned": (2,) if group.rank == 1 else ()}
    worse = {"poisoned": (2, 3) if group.rank == 1 else ()}
    once = {"max_skipped": 2, "ema_decay": 0.0, "clip_norm": 0.5}
    average = pair(parallel="fsdp", checkpoint_steps=2, activation_checkpointing=True)
    return {
        "ddp": run("ddp", pair(**once), **bad),
        "fsdp": run("fsdp", pair(**once, parallel="fsdp"), **bad),
        "often": run("often", pair(max_skipped=2, checkpoint_steps=1), **worse),
        "average": run("average", average),
        "stopped": run("parts", average, stop=5),
        "parts": run("parts", average),
    }


def process(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    with ranks("cpu", 60) as group:
        found = scenarios(folder, group)
    found["threads"] = [name for name in threads() if name.startswith("pt_gloo")]
    (folder / f"{rank}.json").write_text(json.dumps(found))


def threads() -> list[str]:
    """Names of this process's threads, those of libraries too; nothing where there is no Linux."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of all runs, and what each process said of them."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Started anew: threads of this process would not survive a fork.
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=process, args=(rank, folder, port)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(240)
        one.kill()
    assert [one.exitcode for one in both] == [0, 0]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


Done = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_step_that_one_cannot_take_nobody_takes(name: str, done: Done) -> None:
    folder, said = done
    assert [one[name]["skipped"] for one in said] == [1, 1]
    assert [row["step"] for row in read_log(folder / name) if row["kind"] == "skip"] == [2]
    assert sorted(losses(folder / name)) == [1, 3, 4, 5, 6]


def test_both_end_after_too_many(done: Done) -> None:
    folder, said = done
    for one in said:
        assert "2 steps in a row" in one["often"]["error"]
        assert "the last good checkpoint is" in one["often"]["error"]
    assert sorted(losses(folder / "often")) == [1]


def test_shares_train_the_same_model(done: Done) -> None:
    folder, said = done
    whole, parts = losses(folder / "ddp"), losses(folder / "fsdp")
    assert sorted(parts) == [1, 3, 4, 5, 6]
    assert list(parts.values()) == pytest.approx(list(whole.values()), rel=1e-3)
    one, other = (weights(folder / name / "model.safetensors") for name in ("ddp", "fsdp"))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
    total = sum(p.numel() for p in load_model(folder / "ddp").parameters())
    own = [one["fsdp"]["own"] for one in said]
    assert sum(own) == total
    assert max(own) < 0.6 * total


def test_checkpoints_of_shares_are_those_of_whole_models(done: Done) -> None:
    folder, _ = done
    states = []
    for name in ("ddp", "fsdp"):
        found = load_state(folder / name / "checkpoints", pytest.fail)
        assert found is not None
        states.append(found[1])
    assert _form(states[0]["model"]) == _form(states[1]["model"])
    assert _form(states[0]["optimizer"]) == _form(states[1]["optimizer"])


def test_shares_go_on_exactly(done: Done) -> None:
    folder, said = done
    assert all(one["stopped"]["error"].startswith("KeyboardInterrupt") for one in said)
    assert "resume" in [row["kind"] for row in read_log(folder / "parts")]
    assert losses(folder / "parts") == losses(folder / "average")
    for name in ("model.safetensors", "best/model.safetensors"):
        assert same_state(*(weights(folder / run / name) for run in ("parts", "average")))
    assert len(checkpoints(folder / "parts" / "checkpoints")) == 2


def test_no_thread_of_the_group_is_left_behind(done: Done) -> None:
    # One that outlives the interpreter aborts the process at its end, now and then.
    _, said = done
    assert [one["threads"] for one in said] == [[], []]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"precision": "fp16"}, "precision must be bf16 or fp32"),
        ({"compile": True}, "compile must be false"),
    ],
)
def test_what_shares_cannot_do_is_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(overrides={"parallel": "fsdp", **overrides})


def _form(state: Any) -> Any:
    """A state with shapes and dtypes in the place of tensors, and nothing in that of numbers."""
    if isinstance(state, torch.Tensor):
        return tuple(state.shape), state.dtype
    if isinstance(state, dict):
        return {key: _form(value) for key, value in state.items()}
    return [_form(value) for value in state] if isinstance(state, list) else type(state)
