"""The folder of a run: what is in it, who may write, and whether a run may go on in it.

``config.toml``, ``log.jsonl``, ``checkpoints/``, the weights to share in ``best/`` (best evaluation
so far) and, at the end, in ``model.safetensors`` with ``config.json``; ``curves.png``,
``result.json``.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_models.checkpoints import save_checkpoint
from evit_models.durable import write_durably
from evit_models.training.checkpointing import (
    checkpoints,
    load_state,
    save_state,
    why_bad,
)
from evit_models.training.config import CONFIG_FILE, TrainConfig, load_config
from evit_models.training.distributed import Ranks
from evit_models.training.errors import ConfigError, TrainingError
from evit_models.training.logging import read_log
from evit_models.training.objective import SINGLE, Heads

if TYPE_CHECKING:
    from evit_models.efficientvit3d import EfficientViT3D
    from evit_models.video.datasets import ClipDataset

# What a killed run started, readers of videos for example, may live on for some seconds.
PATIENCE = 30.0

CHECKPOINTS, BEST, RESULT_FILE, CURVES_FILE = "checkpoints", "best", "result.json", "curves.png"


class RunFolder:
    """Files of one run. Only the first process writes; all read.

    Raises:
        ConfigError: the folder cannot be written, or holds a run of another configuration.
    """

    def __init__(self, path: Path, config: TrainConfig, ranks: Ranks) -> None:
        self.path, self.config, self.ranks = path, config, ranks
        self.checkpoints = path / CHECKPOINTS
        problem = self._claim() if ranks.first else None
        if problem := ranks.from_first(problem):
            raise ConfigError(problem)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder; the end of the process, of whatever kind, lets go.

        Raises:
            ConfigError: another run is in the folder, and stays there.
        """
        handle = os.open(self.path, os.O_RDONLY) if self.ranks.first else None
        try:
            problem = self._lock(handle) if handle is not None else None
            if problem := self.ranks.from_first(problem):
                raise ConfigError(problem)
            yield
        finally:
            if handle is not None:
                os.close(handle)

    def describe(self, model: EfficientViT3D, train_set: ClipDataset, heads: Heads) -> None:
        """Gives a model what must stand in its files: classes, and the clips it knows."""
        config, names = self.config, train_set.class_names
        model.data_cfg.update(
            input_size=(3, config.frames, config.size, config.size), stride=config.stride or None
        )
        if isinstance(names, dict):
            names = [name for head in heads.sizes for name in names[head]]
        if names is not None:
            model.data_cfg["class_names"] = list(names)
        if list(heads.sizes) != [SINGLE]:
            model.data_cfg["heads"] = dict(heads.sizes)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Saves a checkpoint; a TrainingError in every process where the first one cannot."""
        problem = None
        if self.ranks.first:
            try:
                save_state(self.checkpoints, step, state)
            except TrainingError as error:
                problem = str(error)
        if problem := self.ranks.from_first(problem):
            raise TrainingError(problem)

    def load(
        self, warn: Callable[[str], object], *, clips: int
    ) -> tuple[Path, dict[str, Any]] | None:
        """Returns the newest usable checkpoint, the same one in every process, or None.

        Raises:
            ConfigError: it was made from other data or by another number of processes.
        """
        found = load_state(self.checkpoints, warn, map_location=self.ranks.device)
        if found is None:
            return None
        path, state = found
        for what, now in (("world", self.ranks.world), ("clips", clips)):
            if state[what] != now:
                words = {"world": "processes", "clips": "training clips"}[what]
                raise ConfigError(
                    f"output: {path} was made with {state[what]} {words}, now there are {now}; it "
                    "could not go on exactly. Use the same, or another output folder"
                )
        return path, state

    def safe(self) -> str:
        """Returns in words which checkpoint is the last good one."""
        for path in checkpoints(self.checkpoints):
            if why_bad(path) is None:
                return f"the last good checkpoint is {path}; the same command goes on from there"
        return "there is no checkpoint yet"

    def keep_best(self, model: EfficientViT3D) -> None:
        """Writes the weights of the best evaluation so far."""
        self._export(model, self.path / BEST)

    def finish(self, model: EfficientViT3D, result: dict[str, Any]) -> None:
        """Writes the last weights, the curves and the result."""
        self._export(model, self.path)
        if not self.ranks.first:
            return
        from evit_models.training.charts import save_curves

        try:
            save_curves(read_log(self.path), self.path / CURVES_FILE, title=self.config.model)
            write_durably(self.path / RESULT_FILE, json.dumps(result, indent=2).encode() + b"\n")
        except OSError as error:
            raise TrainingError(f"cannot write to {self.path}: {error.strerror}") from error

    def _export(self, model: EfficientViT3D, folder: Path) -> None:
        if not self.ranks.first:
            return
        try:
            save_checkpoint(model, folder)
        except OSError as error:
            raise TrainingError(
                f"cannot write weights to {folder}: {error.strerror}; {self.safe()}"
            ) from error

    def _lock(self, handle: int) -> str | None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.1)
                    continue
                return (
                    f"output: another process is training in {self.path}. Wait for it, or give "
                    "another folder"
                )
            except OSError:
                return None  # a file system without locks
            return None

    def _claim(self) -> str | None:
        """Writes the configuration, or returns why this run cannot be in this folder."""
        file = self.path / CONFIG_FILE
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            begun = file.exists() and bool(checkpoints(self.checkpoints))
            if begun and (different := self.config.differences(load_config(file))):
                return (
                    f"output: {self.path} holds a run of another configuration: "
                    f"{'; '.join(different)}. Give another folder, or remove this one"
                )
            write_durably(file, self.config.to_toml().encode())
        except OSError as error:
            return f"output: {error.filename or self.path}: {error.strerror}"
        except ConfigError as error:
            return f"output: {error}"
        return None
