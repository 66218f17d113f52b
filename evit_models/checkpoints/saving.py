"""Saving: a safetensors file with the model's configuration, complete or not there at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save

from evit_models.checkpoints.reading import DATA_KEY, FOLDER_FILE, METADATA_KEY
from evit_models.durable import write_durably

if TYPE_CHECKING:
    from evit_models.efficientvit3d import EfficientViT3D

CONFIG_FILE = "config.json"


def save_checkpoint(model: EfficientViT3D, path: str | os.PathLike[str]) -> Path:
    """Writes a model's weights as safetensors, and its configuration beside them as config.json.

    The configuration, and what the model knows of its data, also stand in the header of the weights
    file, which is what `load_model` and `create_model(name, pretrained=path)` read. Each file is
    written under another name, flushed to the disk, and only then renamed: a crash leaves the old
    file or the new one, never half of one.

    Args:
        model: its parameters and buffers are stored in their dtype, contiguous.
        path: a file that ends in .safetensors, or a folder, which gets model.safetensors.

    Returns:
        The path of the weights file.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        path = path / FOLDER_FILE
    elif path.suffix != ".safetensors":
        raise ValueError(
            f"save_checkpoint: path must end in .safetensors or be a folder, got {path}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps(model.config),
        DATA_KEY: json.dumps(model.data_cfg),
    }
    description = {"architecture": model.name, **model.config, "default_cfg": model.default_cfg}
    write_durably(path, _in_order(save(tensors, metadata)))
    write_durably(path.with_name(CONFIG_FILE), (json.dumps(description, indent=2) + "\n").encode())
    return path


def _in_order(content: bytes) -> bytes:
    """Sorts the metadata of a safetensors file, which come in another order in every process.

    So the same weights are the same file, byte by byte.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # Spaces up to a multiple of eight bytes: tensors have to be aligned.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
