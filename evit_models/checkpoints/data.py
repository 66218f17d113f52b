"""What a checkpoint says of the data that its model was trained on, as far as it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evit_models.checkpoints.reading import Checkpoint, CheckpointError

_LARGEST = 1 << 14  # frames or pixels along an axis: a file must not decide to fill the memory


def check_data_cfg(checkpoint: Checkpoint, num_classes: int | None) -> dict[str, Any]:
    """Returns the file's `EfficientViT3D.data_cfg`, checked; unknown keys are left out.

    Args:
        num_classes: outputs that "class_names" and "heads" must be for; None leaves both out.

    Raises:
        CheckpointError: a value that means nothing, by its name.
    """
    fits: dict[str, Callable[[Any], bool]] = {
        "input_size": lambda v: _numbers(v, 4, int) and all(1 <= x <= _LARGEST for x in v),
        "stride": lambda v: v is None or (type(v) is int and 1 <= v <= _LARGEST),
        "mean": lambda v: _numbers(v, 3, int, float),
        "std": lambda v: _numbers(v, 3, int, float) and all(x > 0 for x in v),
        "class_names": lambda v: _texts(v) and len(v) == num_classes,
        "heads": lambda v: _heads(v) and sum(v.values()) == num_classes,
    }
    found = {}
    for name, check in fits.items():
        if name not in checkpoint.data or (
            num_classes is None and name in ("class_names", "heads")
        ):
            continue
        value = checkpoint.data[name]
        if not check(value):
            raise CheckpointError(f"{checkpoint.path}: {name} in its header is {str(value)[:80]!r}")
        found[name] = tuple(value) if name in ("input_size", "mean", "std") else value
    return found


def _numbers(value: Any, count: int, *kinds: type) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(x) in kinds for x in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _heads(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(type(size) is int and size > 0 for size in value.values())
    )
