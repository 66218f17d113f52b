"""What Triton's compiler makes of its kernels, for GPUs that need not be there."""

from __future__ import annotations

from pathlib import Path

import background
import pytest

from evit_kernels import backends

SCRIPT = Path(__file__).resolve().parent.parent / "native" / "triton_resources.py"
MISSING = backends.triton_failure()


@pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
@pytest.mark.background(SCRIPT)
def test_no_kernel_spills_fast_paths_are_fast_and_the_table_of_resources_is_kept() -> None:
    answer = background.answer(SCRIPT)
    assert answer.returncode == 0, answer.text
