"""Calls that were made before: what their checks found, and the short way to the kernel.

Between two large kernels the caches hold little of the interpreter and of PyTorch's dispatcher. A
call that takes 17 us when it is repeated by itself took 260 us there, as long as many a kernel;
looking it up and going to the core at once took 135 to 170 us. Gradients go the same way: one of
attention that takes 37 instead of 62 us when repeated takes 127 instead of 169 us between others.
What calls are found by, their keys, is made in the core where torch can describe tensors to it, and
what wants nothing but its kernel is called from there, too: beside keys and calls made in Python,
attention over 392 tokens takes 0.9 of the time, over 1,568 tokens 0.95, over 6,272 0.96 to 1.0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C import (
    _is_torch_function_mode_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from evit_kernels._native import core
from evit_kernels._registration import needs_autograd
from evit_kernels.backends import ENVIRONMENT

# What computes a call from its tensors past torch's dispatcher; None where nothing does.
Direct = Callable[..., Tensor] | None

_PLAIN = frozenset((Tensor, torch.nn.Parameter))
# Looked up once: every step that is saved is a cache line that need not be fetched.
_num_threads = torch.get_num_threads


class Known(NamedTuple):
    """What is known of a call.

    Args:
        backend: the backend that serves it.
        arguments: what the checks made of its options.
        direct: computes it from its tensors, without autograd; None where there is no short way.
            One callable, or several of an operator that is more than one call.
        at_once: the same where nothing else is to be done: no gradient is wanted.
    """

    backend: str
    arguments: Any
    direct: Any = None
    at_once: Direct = None


class Table(Protocol):
    """What is known of calls, by their keys."""

    def find(
        self, tensors: Sequence[Tensor | None], options: tuple[Any, ...], backend: str | None
    ) -> tuple[Any, Known | None]:
        """Returns the key of a call, and what is known of it; see Calls.find."""
        ...

    def call(
        self, tensors: Sequence[Tensor | None], options: tuple[Any, ...], backend: str | None
    ) -> Tensor | tuple[Any, Known | None]:
        """Returns the result of a call, or what `find` returns; see Calls.call."""
        ...

    def keep(self, key: Any, known: Known) -> None:
        """Remembers a call."""
        ...

    def __len__(self) -> int: ...


_ALL: list[Calls] = []


def forget() -> None:
    """Forgets all calls of all operators: for a core that changed its kernels, as tests make it."""
    for calls in _ALL:
        calls.forget()


class Calls:
    """The known calls of one operator, by all that its checks, plans and backends depend on."""

    _MOST = 1024

    def __init__(self) -> None:
        self._table: Table | None = None
        _ALL.append(self)

    def forget(self) -> None:
        """Forgets all calls."""
        self._table = None

    def find(
        self, tensors: Sequence[Tensor | None], options: tuple[Any, ...], backend: str | None
    ) -> tuple[Any, Known | None]:
        """Returns the key of a call, and what is known of it.

        The key is None where a call must not be remembered: something watches the operators go by
        (a compiler, a mode, a transform, a tracer, the profiler), gradients are taken forward, a
        tensor is not plain memory, or an option can change.
        """
        if is_dynamo_compiling():
            return None, None
        table = self._made() if self._table is None else self._table
        return table.find(tensors, options, backend)

    def call(
        self, tensors: Sequence[Tensor | None], options: tuple[Any, ...], backend: str | None
    ) -> Tensor | tuple[Any, Known | None]:
        """Returns the result of a known call that needs nothing but its kernel.

        Of others what `find` returns.
        """
        if is_dynamo_compiling():
            return None, None
        table = self._made() if self._table is None else self._table
        return table.call(tensors, options, backend)

    def keep(self, key: Any, known: Known) -> Known:
        """Remembers, and returns, what was found of a call.

        Not while a CUDA graph is captured: a backend that could not be tried then may serve later.
        """
        if key is not None and not _capturing():
            table = self._table
            if table is None or len(table) >= self._MOST:
                table = self._made()
            table.keep(key, known)
        return known

    def learn(
        self,
        key: Any,
        tensors: Sequence[Tensor | None],
        backend: str,
        arguments: Any,
        direct: Direct,
    ) -> Known:
        """Keeps a call of one kernel: it is made at once where it wants no gradient."""
        at_once = None if needs_autograd(*tensors) else direct
        return self.keep(key, Known(backend, arguments, direct, at_once))

    def _made(self) -> Table:
        """Makes an empty table, when one is needed: that loads the core."""
        self._table = _new_table()
        return self._table

    def direct_backward(
        self,
        backends: Mapping[str, ModuleType],
        backend: str,
        tensors: Sequence[Tensor | None],
        options: tuple[Any, ...],
    ) -> Callable[..., Any] | None:
        """Returns what computes gradients past torch's dispatcher, None if nothing does.

        It takes `tensors`; the backend is asked once for all that are alike, and their options.
        """
        key, known = self.find(tensors, options, backend)
        if known is None:
            call = key and direct(backends, backend, tensors, *options, way="direct_backward")
            known = self.keep(key, Known(backend, None, call))
        result: Callable[..., Any] | None = known.direct
        return result


def direct(
    backends: Mapping[str, ModuleType], backend: str, *arguments: Any, way: str = "direct"
) -> Any:
    """Returns what computes calls like this one past torch's dispatcher, None if nothing does.

    way: "direct", or "direct_backward" for gradients.
    """
    prepare = getattr(backends.get(backend), way, None)
    return None if prepare is None else prepare(*arguments)


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


# What is true of while something watches the operators go by.
_WATCHERS = (
    _len_torch_dispatch_stack,
    _is_torch_function_mode_enabled,
    peek_interpreter_stack,
    _is_tracing,
    _profiler_enabled,
)


class PythonTable:
    """Calls that are known, for a torch that cannot describe tensors to the core."""

    def __init__(self) -> None:
        self._known: dict[Any, Known] = {}

    def find(
        self, tensors: Sequence[Tensor | None], options: tuple[Any, ...], backend: str | None
    ) -> tuple[Any, Known | None]:
        """Returns the key of a call, and what is known of it."""
        key = _python_key(tensors, options, backend)
        return (None, None) if key is None else (key, self._known.get(key))

    def call(
        self, tensors: Sequence[Tensor | None], options: tuple[Any, ...], backend: str | None
    ) -> Tensor | tuple[Any, Known | None]:
        """Returns the result of a known call, or what `find` returns."""
        key, known = self.find(tensors, options, backend)
        if known is None or known.at_once is None:
            return key, known
        return known.at_once(*tensors)

    def keep(self, key: Any, known: Known) -> None:
        """Remembers a call."""
        self._known[key] = known

    def __len__(self) -> int:
        return len(self._known)


def _python_key(
    tensors: Sequence[Tensor | None], options: tuple[Any, ...], backend: str | None
) -> Any:
    """Returns the key of a call, or None where it must not be remembered."""
    if any(watcher() for watcher in _WATCHERS) or forward_ad._current_level >= 0:
        return None
    memory: list[Any] = []
    for t in tensors:
        if t is None:
            memory.append(None)
        elif type(t) in _PLAIN and not (is_legacy_batchedtensor(t) or t._is_zerotensor()):
            memory.append((t.shape, t.stride(), t.dtype, t.device, t.is_neg()))
        else:
            return None
    if backend is None:
        backend = os.environ.get(ENVIRONMENT)
    # Values that are equal may be of several types: True, 1 and 1.0, alone or in a tuple.
    types = [tuple(map(type, a)) if type(a) is tuple else type(a) for a in options]
    key = (_num_threads(), *memory, needs_autograd(*tensors), *options, *types, backend)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def tables() -> Callable[[], Table]:
    """Returns what makes tables: of the core, or those here for a torch without DLPack 1.3."""
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    try:
        keys = core().CallKeys(
            exchange,
            tuple(_PLAIN),
            _WATCHERS,
            _num_threads,
            torch.is_grad_enabled,
            forward_ad,
            ENVIRONMENT,
        )
    except (ImportError, RuntimeError, TypeError, ValueError):
        return PythonTable
    return partial(core().KnownCalls, keys)


def _first_table() -> Table:
    """Makes a table, and chooses who makes the next ones: importing this does not load the core."""
    global _new_table
    _new_table = tables()
    return _new_table()


_new_table: Callable[[], Table] = _first_table
