"""Argument checks of the operators: messages name the operator, the argument, what it got."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def triple(value: int | Sequence[int], where: str, name: str, minimum: int) -> tuple[int, int, int]:
    """Expands an int or a sequence of three to (time, height, width), each at least `minimum`."""
    if isinstance(value, int):
        items: tuple[int, ...] = (value, value, value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = tuple(value)
    else:
        raise TypeError(f"{where}: {name} must be an int or three ints, got {type(value).__name__}")
    if len(items) == 1:
        items = items * 3
    if len(items) != 3:
        raise ValueError(f"{where}: {name} must have 1 or 3 values, got {len(items)}: {items}")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (int, torch.SymInt)):
            raise TypeError(f"{where}: {name} must hold ints, got {type(item).__name__}")
        if item < minimum:
            raise ValueError(f"{where}: {name} must be at least {minimum}, got {items}")
    return items[0], items[1], items[2]


def tensor(value: object, where: str, name: str) -> Tensor:
    """Returns the value if it is a tensor, else raises TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a Tensor, got {type(value).__name__}")
    return value


def floating(value: Tensor, where: str, name: str) -> None:
    """Raises TypeError unless the tensor is float32, float16, bfloat16 or float64."""
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{where}: {name} must be float32, float16, bfloat16 or float64, got {value.dtype}"
        )


def same_kind(value: Tensor, like: Tensor, where: str, name: str, like_name: str) -> None:
    """Raises unless two tensors share their dtype (TypeError) and device (RuntimeError)."""
    if value.dtype != like.dtype:
        raise TypeError(f"{where}: {name} is {value.dtype}, {like_name} is {like.dtype}")
    if value.device != like.device:
        raise RuntimeError(f"{where}: {name} is on {value.device}, {like_name} is on {like.device}")


def alike(value: object, size: Sequence[int], input: Tensor, where: str, name: str) -> None:
    """Raises unless the value is a tensor of this size, of the dtype and device of `input`."""
    found = tensor(value, where, name)
    same_kind(found, input, where, name, "input")
    if tuple(found.shape) != tuple(size):
        raise ValueError(f"{where}: {name} must be {tuple(size)}, got {tuple(found.shape)}")


def rank(value: Tensor, expected: int, where: str, name: str, meaning: str) -> None:
    """Raises ValueError unless the tensor has `expected` dimensions."""
    if value.dim() != expected:
        raise ValueError(
            f"{where}: {name} must have {expected} dimensions {meaning}, "
            f"got {value.dim()}: {tuple(value.shape)}"
        )


def non_empty_space(value: Tensor, where: str, name: str) -> None:
    """Raises ValueError when C, T, H or W of a (B, C, T, H, W) tensor is zero."""
    for label, size in zip(("channels", "T", "H", "W"), value.shape[1:], strict=True):
        if size == 0:
            raise ValueError(f"{where}: {name} has zero {label}: {tuple(value.shape)}")
