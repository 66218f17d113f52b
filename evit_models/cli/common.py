"""What several subcommands share: options, mistakes of the user, models and their input."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import torch

    from evit_models import EfficientViT3D

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

DEFAULT_MODEL = "efficientvit3d_b1"


class UserError(click.UsageError):
    """A mistake in what the user gave: one line, exit code 2."""


def failures() -> tuple[type[Exception], ...]:
    """Errors of the library that are about the user's files, so no traceback is of use."""
    from evit_models import CheckpointError
    from evit_models.training.errors import ConfigError
    from evit_models.video import VideoError
    from evit_models.video.datasets import DatasetError, TooManyBadVideos

    return (CheckpointError, ConfigError, DatasetError, TooManyBadVideos, VideoError)


def unlucky() -> tuple[type[Exception], ...]:
    """Errors that are nobody's mistake, but say all there is to say."""
    from evit_models.training.errors import TrainingError

    return (TrainingError,)


def debug_option(command: Decorated) -> Decorated:
    """``--debug``, for the group and every subcommand; `app.main` reads it off the arguments."""
    return click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    )(command)


def json_option(command: Decorated) -> Decorated:
    """``--json``: nothing but JSON on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(
        command
    )


def model_options(command: Decorated) -> Decorated:
    """``--backend`` and ``--device``."""
    command = click.option(
        "--backend",
        metavar="NAME",
        help="Backend of every operator: reference, native or triton. Default: automatic.",
    )(command)
    return click.option(
        "--device", "device_name", default="cpu", show_default=True, metavar="DEVICE"
    )(command)


def parse_device(name: str) -> torch.device:
    """A device that this machine has, or a UserError."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device: {name!r} is no device; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: {name!r} is not supported; expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"--device: {name!r} is not there; PyTorch sees {count} CUDA devices")
    return device


def check_model_name(name: str) -> str:
    """The name, if there is such a model; else a UserError that names the closest ones."""
    from evit_models import list_models

    known = list_models()
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    raise UserError(f"unknown model {name!r}; {hint}")


def check_backend(
    backend: str | None, device: torch.device, operators: Collection[str] | None = None
) -> str | None:
    """The backend's name, if it can serve on the device; else a UserError with the reason.

    It must serve all operators, or at least one of those named.
    """
    if backend is None:
        return None
    from evit_kernels import backends

    if backend not in backends.NAMES:
        raise UserError(f"--backend: {backend!r} is none of {', '.join(backends.NAMES)}")
    rows = [
        row
        for row in backends.availability(device)
        if row.backend == backend and (operators is None or row.operator in operators)
    ]
    lacking = [row for row in rows if not row.available]
    if lacking and (operators is None or len(lacking) == len(rows)):
        raise UserError(f"--backend: {backend} is not available: {lacking[0].reason}")
    return backend


def random_model(
    name: str, *, num_classes: int = 400, backend: str | None = None, **arguments: Any
) -> EfficientViT3D:
    """A model in evaluation mode whose random weights are the same in every run."""
    import torch

    from evit_models import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(name, num_classes, backend=backend, **arguments).eval()


def read_labels(path: str, option: str = "--labels") -> list[str]:
    """Names of classes from a file: one per line, or a JSON list, or {"0": name, ...}."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UserError(f"{option}: {path}: {reason}") from error
    if text.lstrip()[:1] in ("[", "{"):
        return _json_labels(path, text, option)
    labels = [line.strip() for line in text.splitlines()]
    while labels and not labels[-1]:
        labels.pop()
    if not labels:
        raise UserError(f"{option}: {path}: is empty, expected one name per line")
    if "" in labels:
        raise UserError(f"{option}: {path}: line {labels.index('') + 1} is empty")
    return labels


def _json_labels(path: str, text: str, option: str) -> list[str]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{option}: {path}: is not valid JSON: {error}") from error
    if isinstance(value, dict):
        value = [value.get(str(index)) for index in range(len(value))]
    if not value or not all(isinstance(label, str) for label in value):
        raise UserError(
            f'{option}: {path}: expected a JSON list of names, or {{"0": name, "1": name, ...}}'
        )
    return list(value)
