"""Who is compared on a GPU: ours by both backends, PyTorch in both layouts, and its compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch._functorch.config
from device import Rotation, clock_of, copies_for, copy_floor
from exact import check
from gpu_cases import Case
from rounds import (
    AUTOTUNED,
    CHANNELS_LAST,
    COMPILED,
    FLOOR,
    NCDHW,
    OURS,
    OURS_NCDHW,
    OURS_TRITON,
    Group,
    Peer,
    gradients,
    inference,
    measure,
)
from torch import Tensor

from evit_kernels import available_backends

LAST = torch.channels_last_3d
PLANAR = torch.contiguous_format
_LAYOUTS = {NCDHW: PLANAR, OURS_NCDHW: PLANAR}
_BACKENDS = {OURS: "native", OURS_NCDHW: "native", OURS_TRITON: "triton"}
# Relative errors that rounding explains: of eager PyTorch, which rounds between its operators.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}

Function = Callable[..., Tensor]
Ours = Callable[[str], Function]  # from the name of a backend


def peers_of(operator: str, device: str) -> list[str]:
    """The peers that can be there for an operator on a device."""
    served = available_backends(device, operator)
    ours = [name for name, backend in _BACKENDS.items() if backend in served]
    return [*ours, NCDHW, CHANNELS_LAST, COMPILED, AUTOTUNED, FLOOR]


def layout_of(peer: str) -> torch.memory_format:
    """The memory format in which a peer gets its clips."""
    return _LAYOUTS.get(peer, LAST)


def compiled(function: Function, peer: str, device: torch.device) -> Function:
    """A function under torch.compile, in the mode of a peer.

    Without CUDA graphs of its own: these copy their inputs, and no peer launches in measured time.
    On a CPU, where only the benchmark itself is tried, by the compiler's quick way.
    """
    if device.type != "cuda":
        return torch.compile(function, backend="aot_eager")
    mode = "max-autotune-no-cudagraphs" if peer == AUTOTUNED else "default"
    return torch.compile(function, mode=mode)


@contextmanager
def fair() -> Iterator[None]:
    """cuDNN may look for its best algorithm; float32 is float32; compiled backward runs again."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32 = True, False
    torch.compiler.reset()
    try:
        # Otherwise a backward pass could run only once, for it would overwrite what forward saved.
        with torch._functorch.config.patch(donated_buffer=False):
            yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before


def operator_group(
    row: str,
    case: Case,
    names: Sequence[str],
    device: torch.device,
    rounds: int,
    numbers: Callable[[], Sequence[Tensor]],
    ours: Ours,
    theirs: Function,
    wanted: Sequence[int] = (),
    nbytes: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Group:
    """Measures an operator, forward or the gradients of some of its tensors.

    Args:
        row, case: what is measured.
        names: the peers.
        device, rounds: where, and how often.
        numbers: makes the tensors of one call; clips come first in memory format, on `device`.
        ours, theirs: the operator by a backend of ours, and by PyTorch.
        wanted: positions of the tensors whose gradients are computed; none means forward.
        nbytes: what has to be read and written at least.
        facts: more that the table needs to know.
    """
    try:
        with fair():
            tensors = _Tensors(numbers, wanted, copies_for(nbytes, device))
            makers: dict[str, Callable[[], Callable[[], Any]]] = {}
            for name in names:
                if name == FLOOR:
                    makers[name] = partial(copy_floor, nbytes, device)
                elif name in _BACKENDS:
                    function = ours(_BACKENDS[name])
                    makers[name] = partial(tensors.calls, function, layout_of(name))
                elif name in (COMPILED, AUTOTUNED):
                    function = compiled(theirs, name, device)
                    makers[name] = partial(tensors.calls, function, layout_of(name))
                else:
                    makers[name] = partial(tensors.calls, theirs, layout_of(name))
            calls = checked(
                makers, partial(tensors.exact, theirs), TOLERANCES[case.dtype], f"{row}: {case}"
            )
            group = measure(row, str(case), calls, rounds, device, clock_of(device))
    except torch.cuda.OutOfMemoryError as error:
        pytest.skip(f"{row}, {case}: does not fit into the GPU's memory: {str(error)[:100]}")
    group.facts = {**case.facts, "bytes": nbytes, **(facts or {})}
    return group


def checked(
    makers: Mapping[str, Callable[[], Callable[[], Any]]],
    exact: Callable[[], Any],
    tolerance: float,
    what: str,
) -> dict[str, Peer]:
    """Makes the calls of peers, and compares the first of each with float64."""
    truth = cache(exact)

    def make(name: str) -> Callable[[], Any]:
        call = makers[name]()
        if name != FLOOR:
            check({name: call}, truth(), tolerance, what)
        return call

    return attempted({name: partial(make, name) for name in makers})


def attempted(makers: Mapping[str, Callable[[], Callable[[], Any]]]) -> dict[str, Peer]:
    """Makes the calls of peers. Where one of ours fails, so does the benchmark.

    Another that cannot do the work, or not accurately, is absent for that reason.
    """
    calls: dict[str, Peer] = {}
    for name, make in makers.items():
        try:
            calls[name] = make()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            if name.startswith(OURS):
                raise
            calls[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return calls


class _Tensors:
    """Several sets of tensors, so that no cache holds the next one; shared by peers of a layout."""

    def __init__(
        self, numbers: Callable[[], Sequence[Tensor]], wanted: Sequence[int], copies: int
    ) -> None:
        self._sets = [list(numbers()) for _ in range(copies)]
        self._wanted = wanted
        self._gradients: list[Tensor] = []
        self._by_layout: dict[torch.memory_format, list[list[Tensor]]] = {}

    def calls(self, function: Function, layout: torch.memory_format) -> Rotation:
        """One call on each set of tensors in turn; the first call is on the first set."""
        if layout not in self._by_layout:
            self._by_layout[layout] = [
                [
                    _laid_out(x, layout).detach().requires_grad_(number in self._wanted)
                    for number, x in enumerate(tensors)
                ]
                for tensors in self._sets
            ]
        sets = self._by_layout[layout]
        if self._wanted:
            return Rotation([self._backward(function, n, layout) for n in range(len(sets))])
        return Rotation([inference(function, *tensors) for tensors in sets])

    def exact(self, function: Function) -> Any:
        """The result of the first set in float64."""
        inputs = [
            x.double().contiguous().requires_grad_(number in self._wanted)
            for number, x in enumerate(self._sets[0])
        ]
        if not self._wanted:
            with torch.no_grad():
                return function(*inputs)
        wanted = [inputs[number] for number in self._wanted]
        return torch.autograd.grad(function(*inputs), wanted, self._gradients[0].double())

    def _backward(
        self, function: Function, number: int, layout: torch.memory_format
    ) -> Callable[[], Any]:
        tensors = self._by_layout[layout][number]
        output = function(*tensors)
        if len(self._gradients) <= number:
            self._gradients.append(torch.randn_like(output))
        gradient = _laid_out(self._gradients[number], layout)
        return gradients(output, [tensors[n] for n in self._wanted], gradient)


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    return x.contiguous(memory_format=layout) if x.dim() == 5 else x.contiguous()
