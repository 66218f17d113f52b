"""Operator tests, unchanged, on the tensors of a GPU, or by Triton's interpreter.

While a placement is in use, tensors are made on its device, and its backend serves whoever asks for
"native" or for none. So a test that compares "native" with "reference" compares there.

The interpreter does with numpy, tile by tile, what a GPU would. So Triton kernels are tried where
there is no GPU: their arithmetic, their masks, what they write. Not tried are the compiler, and
reads outside of tensors whose values nobody uses. Triton becomes its interpreter or its compiler
when it is imported, for good and for everybody in the process: this takes one of its own, in which
TRITON_INTERPRET=1 from the beginning. test_triton_kernels.py starts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import NamedTuple

import hypothesis
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


def placements(operator: str) -> list[Placement]:
    """Where the tests of an operator run besides the CPU's own kernels.

    By every fused backend that serves it on the GPUs that torch sees; by Triton on the CPU, in a
    process that interprets it.
    """
    places = []
    if "triton" in available_backends("cpu", operator):
        places.append(Placement("cpu", "triton"))
    if torch.cuda.is_available():
        served = available_backends("cuda", operator)
        places += [Placement("cuda", backend) for backend in FUSED if backend in served]
    return places


@contextmanager
def in_use(placement: Placement) -> Iterator[None]:
    """Makes tensors on a device, and lets one backend serve there."""
    select = backends._select

    @wraps(select)
    def redirected(
        operator: str,
        backend: str | None,
        device: torch.device,
        dtype: torch.dtype,
        wide: bool,
    ) -> str:
        if backend in (None, "native"):
            refusal = backends.refusal(operator, placement.backend, device, dtype, wide)
            if refusal is not None:
                _give_up(f"{placement}: {refusal}")
            backend = placement.backend
        return select(operator, backend, device, dtype, wide)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_select", redirected)
        # Else PyTorch's float32 has the digits of TF32, and ours could be as bad.
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        torch.set_default_device(placement.device)
        try:
            yield
        finally:
            torch.set_default_device(None)


def _give_up(reason: str) -> None:
    """Ends a test that a backend cannot serve, or one of its examples: float64, mostly."""
    if hypothesis.currently_in_test_context():
        hypothesis.reject()
    pytest.skip(reason)


def randn(*shape: int, seed: int) -> Tensor:
    """Normal numbers in float64, the same on every device, where tensors are made by default."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(torch.get_default_device())
