"""Operator tests, unchanged, on the tensors of a GPU.

While a placement is in use, tensors are made on its device, and its backend serves whoever asks for
"native" or for none. So a test that compares "native" with "reference" compares there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from evit_kernels import available_backends, backends

FUSED = ("native", "triton")


class Placement(NamedTuple):
    """Where tensors are, and the backend that is tried there."""

    device: str
    backend: str

    def __str__(self) -> str:
        return f"{self.device}-{self.backend}"


def placements(operator: str, device: str = "cuda") -> list[Placement]:
    """The fused backends that serve an operator on a device; none where torch sees no such."""
    if device == "cuda" and not torch.cuda.is_available():
        return []
    served = available_backends(device, operator)
    return [Placement(device, backend) for backend in FUSED if backend in served]


@contextmanager
def in_use(placement: Placement) -> Iterator[None]:
    """Makes tensors on a device, and lets one backend serve there."""
    select = backends._select

    @wraps(select)
    def redirected(
        operator: str, backend: str | None, device: torch.device, dtype: torch.dtype
    ) -> str:
        chosen = placement.backend if backend == "native" else backend
        return select(operator, chosen, device, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backends.ENVIRONMENT, placement.backend)
        patch.setattr(backends, "_select", redirected)
        # Else PyTorch's float32 has the digits of TF32, and ours could be as bad.
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        torch.set_default_device(placement.device)
        try:
            yield
        finally:
            torch.set_default_device(None)


def randn(*shape: int, seed: int) -> Tensor:
    """Normal numbers in float64, the same on every device, where tensors are made by default."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(torch.get_default_device())
