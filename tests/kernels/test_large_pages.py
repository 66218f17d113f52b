"""The hint for large pages: which memory it reaches, and that it is no more than a hint."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch

from evit_kernels import _memory, _native

MIB = 1 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMAPS = Path("/proc/self/smaps")
LARGE_PAGES = "hg"  # among VmFlags: MADV_HUGEPAGE was given

pytestmark = pytest.mark.skipif(
    not SETTING.exists() or not SMAPS.exists() or "VmFlags" not in SMAPS.read_text(),
    reason="this system has no large pages, or does not tell which memory is to have them",
)


def _flags(address: int) -> list[str]:
    """The flags of the mapping that holds an address."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text()):
        first, last = (int(number, 16) for number in entry.split(maxsplit=1)[0].split("-"))
        if first <= address < last:
            return entry.rpartition("VmFlags:")[2].split()
    raise AssertionError(f"no mapping holds {address:x}")


@pytest.fixture
def memory() -> torch.Tensor:
    """16 MiB of numbers in a mapping of their own, of small pages."""
    mapping = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = torch.frombuffer(mapping, dtype=torch.int32)
    assert LARGE_PAGES not in _flags(numbers.data_ptr() + 8 * MIB)
    return numbers.copy_(torch.arange(numbers.numel()))


@pytest.mark.parametrize("bytes", [1, 100, MIB, 5 * MIB + 12])
def test_a_hint_reaches_both_ends_and_changes_no_byte(memory: torch.Tensor, bytes: int) -> None:
    first = memory.data_ptr() + 8 * MIB - 3 * MIB // 2 + 4
    _native.core().advise_huge_pages(first, bytes)
    assert LARGE_PAGES in _flags(first)
    assert LARGE_PAGES in _flags(first + bytes - 1)
    assert LARGE_PAGES not in _flags(memory.data_ptr()), "a hint for what lies far away"
    assert torch.equal(memory, torch.arange(memory.numel(), dtype=torch.int32))


def test_a_hint_reaches_memory_next_to_a_gap(memory: torch.Tensor) -> None:
    first, last = memory.data_ptr(), memory.data_ptr() + memory.nbytes - 1
    _native.core().advise_huge_pages(first - 64 * MIB, memory.nbytes + 128 * MIB)
    assert LARGE_PAGES in _flags(first)
    assert LARGE_PAGES in _flags(last)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("size", [4 * MIB, 40 * MIB])
def test_outputs_are_hinted_from_end_to_end(size: int, kept: bool) -> None:
    like = torch.empty(0)
    for tensor in (
        _memory.empty((1, 1, 1, 1, size // 4), like, kept=kept),
        _memory.new((1, 1, 1, 1, size // 4), torch.float32, kept=kept)(),
    ):
        assert LARGE_PAGES in _flags(tensor.data_ptr())
        assert LARGE_PAGES in _flags(tensor.data_ptr() + tensor.nbytes - 1)
