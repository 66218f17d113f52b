"""What the whole suite shares: the same random numbers on every run, hypothesis without a clock.

`pytest -n auto` runs files beside each other, in as many processes as there are cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import shared

# Before torch counts the cores: processes that all use all of them wait for each other. Tests that
# ask for more threads than cores are free leave theirs to the others while they wait.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A pytest that a test starts is nobody's worker.
for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
    del os.environ[name]

import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

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


def pytest_configure(config: pytest.Config) -> None:
    if shared.begin():
        config.add_cleanup(shared.end)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file together, which share fixtures, and files in their order."""
    if config.getoption("dist") != "load":  # what -n means when nothing else is asked for
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from one seed, and leaves the number of threads as it found it."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
