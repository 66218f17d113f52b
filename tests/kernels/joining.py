"""Where kernels join pointwise and depthwise convolutions; elsewhere these are single calls."""

from __future__ import annotations

from evit_kernels import _native

WHY_NOT = "no kernel joins convolutions without AVX2: they are single calls"


def joins() -> bool:
    """Whether the instruction set in use has kernels for it."""
    return _native.core().instruction_set() != "x86-64"
