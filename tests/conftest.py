"""What the whole suite shares: the same random numbers on every run, hypothesis without a clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# No deadline: a loaded machine is not a bug. Derandomised: the next run finds a failure again.
_COMMON = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("evit", _COMMON, max_examples=40)
# For runs under sanitizers, which are many times slower (tests/sanitize.sh).
settings.register_profile("evit-sanitize", _COMMON, max_examples=15)
settings.load_profile("evit")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from one seed, and leaves the number of threads as it found it."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
