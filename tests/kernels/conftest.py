"""Fixtures of the operator tests: poisoned memory, devices, instruction sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import background
import emulation
import placement
import pytest
import torch
import torch.utils.deterministic
from placement import Placement

from evit_kernels import _calls, _native

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
INSTRUCTION_SETS = tuple(_native.core().instruction_sets()) if _native.failure() is None else ()
EMULATED = "cuda-emulated"


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fills uninitialised tensors with NaN, so that an element nobody wrote cannot pass.

    This is PyTorch's own switch: it reaches torch.empty, empty_like, empty_strided, new_empty and
    resize_ below Python, so the compiler traces the same functions as always.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every kind of device that torch sees here."""
    return torch.device(request.param)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "on_cpu(why): not repeated on GPUs or with their kernels, for a reason in words."
    )
    config.addinivalue_line("markers", "background(script, ...): is started before the tests.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that wait for something come last."""
    items.sort(key=lambda item: item.get_closest_marker("background") is not None)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    for item in session.items:
        for marker in item.iter_markers("background"):
            background.start(*marker.args)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tries every instruction set, and for operators that have them the CUDA kernels, emulated.

    Every test of such an operator also runs on a GPU where there is one, and by Triton's
    interpreter where that is asked for.
    """
    name = metafunc.module.__name__.removeprefix("test_")
    operator = next((o for o in emulation.OPERATORS if name.startswith(o)), None)
    if metafunc.definition.get_closest_marker("on_cpu") is not None:
        operator = None
    places = placement.placements(operator) if operator else []
    if "instruction_set" in metafunc.fixturenames:
        names = [*INSTRUCTION_SETS, *([EMULATED] if operator else []), *places]
        metafunc.parametrize("instruction_set", names, indirect=True, ids=str)
    elif places:
        metafunc.parametrize("place", [None, *places], indirect=True, ids=lambda p: str(p or "cpu"))


@pytest.fixture(autouse=True)
def place(request: pytest.FixtureRequest) -> Iterator[None]:
    """The CPU as ever, or a placement, in use during the test, which need not name it."""
    chosen = getattr(request, "param", None)
    with placement.in_use(chosen) if chosen else nullcontext():
        yield


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that runs here, and every placement, in use during the test."""
    if isinstance(request.param, Placement):
        with placement.in_use(request.param):
            yield str(request.param)
        return
    if request.param == EMULATED:
        with emulation.in_use():
            yield EMULATED
        return
    core = _native.core()
    before = core.instruction_set()
    core.set_instruction_set(request.param)
    _calls.forget()  # what is known of a call may be that of another instruction set
    yield request.param
    core.set_instruction_set(before)
    _calls.forget()
