"""The activations that operators can fuse: names, codes in the core, definitions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# The position is the code that the compiled core uses (csrc/include/evit/common.h).
ACTIVATIONS: tuple[str, ...] = ("none", "relu", "relu6", "hardswish", "gelu", "gelu_tanh", "silu")
CODES: dict[str, int] = {name: code for code, name in enumerate(ACTIVATIONS)}

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def canonical(activation: str | None, where: str, name: str = "activation") -> str:
    """Returns the name, with None spelt "none"; raises ValueError naming what exists."""
    if activation is None:
        return "none"
    if not isinstance(activation, str) or activation not in ACTIVATIONS[1:]:
        known = ", ".join(repr(known) for known in ACTIVATIONS[1:])
        raise ValueError(f"{where}: {name} must be None or one of {known}, got {activation!r}")
    return activation


def reference(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Applies an activation by its canonical name with PyTorch's own function."""
    return _FUNCTIONS[activation](x)
