"""Files to tensors, trusting nothing: no code is run, and no tensor is larger than its bytes."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FOLDER_FILE = "model.safetensors"
METADATA_KEY = "evit_models"  # in a safetensors header: the model's configuration as JSON
DATA_KEY = "evit_data"  # there too: what it knows of its data, `EfficientViT3D.data_cfg`
SUFFIXES = (".safetensors", ".pt", ".pth")

# Where training scripts put the weights inside a checkpoint, the averaged ones last.
_NESTS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")

# What readers of archives, pickles and storages raise when bytes are not what they should be.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by the file's names, and the configurations of this package."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Returns what a .safetensors, .pt or .pth file holds, on the CPU.

    A folder stands for the model.safetensors in it. Weights are found at the top or under the usual
    names ("state_dict", "model", ...); prefixes that wrappers add ("module.", ...) are removed.

    Raises:
        FileNotFoundError: no such file. CheckpointError: not a checkpoint, damaged, holding other
        Python objects than tensors and plain values, or claiming tensors larger than their bytes.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FOLDER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"pretrained: there is no file {path}")
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path}: a checkpoint ends in {', '.join(SUFFIXES)}, not in {path.suffix!r}"
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    if path.suffix == ".safetensors":
        tensors, config, data = _read_safetensors(path)
    else:
        tensors, config, data = _find_tensors(path, _read_torch(path)), {}, {}
    for name, tensor in tensors.items():
        _check_storage(path, name, tensor)
    return Checkpoint(path, _without_prefixes(tensors), config, data)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    return (
        tensors,
        _json_object(path, metadata, METADATA_KEY),
        _json_object(path, metadata, DATA_KEY),
    )


def _json_object(path: Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its configuration is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: its configuration is not a JSON object")
    return value


def _read_torch(path: Path) -> object:
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            _check_archive(path)
        # Archives are mapped, not read: weights are touched once, when they are checked and copied.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, or is no PyTorch file; it was not "
            f"opened further, because that could run code. Save model.state_dict() instead. "
            f"({_first_line(error)})"
        ) from error
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: not a readable PyTorch checkpoint: {_first_line(error)}"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuses archives that grow when read: torch.save never compresses."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path}: entry {entry.filename!r} is compressed, which torch.save never does"
            )
    total = sum(entry.file_size for entry in entries)
    if total > path.stat().st_size:
        raise CheckpointError(
            f"{path}: its entries claim {total} bytes, the file has {path.stat().st_size}"
        )


def _find_tensors(path: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors"
        )
    for nest in (None, *_NESTS):
        inner = content if nest is None else content.get(nest)
        if isinstance(inner, Mapping):
            tensors = {
                name: value
                for name, value in inner.items()
                if isinstance(name, str) and isinstance(value, Tensor)
            }
            if tensors:
                return tensors
    keys = ", ".join(repr(key) for key in list(content)[:8])
    raise CheckpointError(f"{path}: holds no tensors by name; its keys are {keys or 'none'}")


def _check_storage(path: Path, name: str, tensor: Tensor) -> None:
    """Refuses tensors that are larger than their bytes, such as a terabyte of stride 0."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(f"{path}: {name} is not a dense tensor but {tensor.layout}")
    claimed = tensor.numel() * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if claimed > held:
        raise CheckpointError(
            f"{path}: {name} claims {claimed} bytes with shape {tuple(tensor.shape)} and strides "
            f"{tuple(tensor.stride())}, but holds {held}"
        )


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
