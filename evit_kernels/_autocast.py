"""What autocast means for our operators: the convolutions follow PyTorch's lower-precision list."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled


def to_lower_precision(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Casts floating tensors (not float64) to autocast's dtype where it is on for their device.

    This is what PyTorch does for its own convolutions; the cast is differentiable.
    The tensors come back in their order, None where None was given.
    """
    if not _is_any_autocast_enabled():
        return tensors
    first = next((t for t in tensors if isinstance(t, Tensor)), None)
    # Meta tensors have no autocast: asking for it raises.
    if first is None or first.device.type == "meta":
        return tensors
    if not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(_cast(t, dtype) for t in tensors)


def _cast(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value if value.dtype == torch.float64 else value.to(dtype)
