"""The state of a run on disk: whole or not there, with a checksum, the last two kept.

A checkpoint is ``step-00000120.pt`` and, beside it, ``step-00000120.pt.sha256``. The sum is written
first: a checkpoint without its sum was never finished.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from evit_models.durable import write_durably
from evit_models.training.errors import TrainingError

KEPT = 2
_NAME = re.compile(r"step-(\d{8})\.pt")


def save_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes the state of a step and removes all but the last checkpoints.

    Each file goes to another name first, is flushed to the disk and then renamed; the folder is
    flushed too. A crash at any moment leaves the earlier checkpoints as they were. A checkpoint of
    that step that is there and whole is kept: the same step has the same state.

    Args:
        folder: made if it is not there.
        state: tensors and plain values, nested.

    Raises:
        TrainingError: a full disk, a read-only folder; it names the last good checkpoint.
    """
    path = folder / f"step-{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (path.exists() and why_bad(path) is None):
            path.unlink(missing_ok=True)
            buffer = io.BytesIO()
            torch.save(state, buffer)
            content = buffer.getbuffer()
            write_durably(_sum_path(path), hashlib.sha256(content).hexdigest().encode() + b"\n")
            write_durably(path, content)
    except OSError as error:
        good = [kept for kept in checkpoints(folder) if why_bad(kept) is None]
        safe = f"the last good checkpoint is {good[0]}" if good else "there is no earlier one"
        raise TrainingError(f"cannot save {path}: {error.strerror}; {safe}") from error
    _remove_old(folder)
    return path


def load_state(
    folder: Path, warn: Callable[[str], object], *, map_location: torch.device | str = "cpu"
) -> tuple[Path, dict[str, Any]] | None:
    """Returns the newest checkpoint that is whole, or None where there is no checkpoint at all.

    Args:
        warn: is told of every checkpoint that was skipped, and why.

    Raises:
        TrainingError: there are checkpoints, but none is whole. To start again is the user's
            decision.
    """
    found = checkpoints(folder)
    reasons = []
    for path in found:
        reason = why_bad(path)
        if reason is None:
            try:
                return path, torch.load(path, map_location=map_location, weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
                reason = f"cannot be read: {error}"
        reasons.append(f"{path.name} {reason}")
        warn(f"checkpoint {path} {reason}; it is skipped for the one before it")
    if found:
        raise TrainingError(
            f"{folder}: no checkpoint is usable: {'; '.join(reasons)}; remove the folder to start "
            "again"
        )
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, the newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def why_bad(path: Path) -> str | None:
    """Returns in words why a checkpoint must not be used, or None when it is whole."""
    try:
        expected = _sum_path(path).read_text(encoding="ascii", errors="replace").strip()
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        return "has no checksum beside it"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if digest.hexdigest() == expected else "is corrupt: its SHA-256 does not match"


def _remove_old(folder: Path) -> None:
    """Removes all but the last checkpoints, and what killed processes left of theirs."""
    kept = checkpoints(folder)[:KEPT]
    names = {name for path in kept for name in (path.name, _sum_path(path).name)}
    for path in folder.iterdir():
        ours = _NAME.match(path.name.removeprefix(".")) is not None
        if ours and path.name not in names:
            path.unlink(missing_ok=True)


def _sum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
