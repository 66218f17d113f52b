"""What a run leaves to read: a line of JSON for every step, and TensorBoard where asked for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_models.training.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "log.jsonl"


class RunLog:
    """Appends to a run's log; a process that must not write gets one without a folder.

    Every line is a JSON object with a "kind" ("start", "resume", "step", "skip", "evaluation",
    "warning", "end"), the "time" in seconds of the clock, and facts. A run that was killed and
    resumed has the steps since its checkpoint twice: the later line is the one that counts.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        self._path = None if folder is None else folder / LOG_FILE
        self._board = _board(folder) if tensorboard and folder is not None else None
        if self._path is not None and _is_torn(self._path):
            self._append("\n")

    def write(self, kind: str, **facts: Any) -> None:
        """Writes a line, at once."""
        if self._path is None:
            return
        self._append(json.dumps({"kind": kind, "time": round(time.time(), 3), **facts}) + "\n")
        if self._board is not None and "step" in facts:
            for name, value in facts.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{kind}/{name}", value, facts["step"])

    def close(self) -> None:
        """Lets TensorBoard finish its file."""
        if self._board is not None:
            self._board.close()

    def _append(self, text: str) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise TrainingError(f"cannot write {self._path}: {error.strerror}") from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's log, each step and each step's evaluation once, the latest.

    A line that a killed process did not finish is left out.
    """
    try:
        text = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(text.splitlines()):
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        repeats = facts["kind"] in ("step", "evaluation")
        key = (facts["kind"], facts["step"]) if repeats else number
        lines.pop(key, None)
        lines[key] = facts
    return list(lines.values())


def _is_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _board(folder: Path) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"tensorboard: cannot be used: {error}; pip install 'evit[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
