"""What the terminal shows: tables, bars, and progress that stays readable in a log file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

_WIDTH_OF_A_LOG = 120


class Advance(Protocol):
    """Tells that one more unit of work is done."""

    def __call__(self, what: str = "") -> None: ...


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr; a file or a pipe gets lines wide enough for our tables."""
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()
    return Console(
        stderr=stderr, width=None if terminal else _WIDTH_OF_A_LOG, highlight=False, markup=False
    )


def print_json(value: Any) -> None:
    """JSON on stdout, indented."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> None:
    """A table on stdout; the columns in ``numbers`` are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, heading in enumerate(headings):
        right = position in numbers
        table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_bars(
    rows: Sequence[tuple[str, float, str]], *, largest: float | None = None, width: int = 44
) -> None:
    """A bar for each (label, value, text), as long as ``width`` for the largest value."""
    largest = largest or max(value for _, value, _ in rows) or 1.0
    indent = max(len(label) for label, _, _ in rows)
    full, half = ("█", "▌") if _speaks_unicode() else ("#", "")
    for label, value, text in rows:
        halves = round(2 * width * max(0.0, value) / largest)
        bar = full * (halves // 2) + (half if halves % 2 else "")
        click.echo(f"  {label:<{indent}}  {bar or full} {text}")


@contextmanager
def progress(title: str, total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """Progress of ``total`` units on stderr: a bar on a terminal, plain lines elsewhere."""
    if quiet:
        yield lambda what="": None
    elif sys.stderr is not None and sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=console(stderr=True), transient=True) as bars:
            task = bars.add_task(title, total=total)
            yield lambda what="": bars.advance(task)
    else:
        yield _Lines(title, total)


class _Lines:
    """At most about ten lines, however many units there are."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._step = max(1, total // 10)

    def __call__(self, what: str = "") -> None:
        self._done += 1
        if self._done % self._step == 0 or self._done == self._total:
            detail = f": {what}" if what else ""
            click.echo(f"{self._title} {self._done}/{self._total}{detail}", err=True)


def _speaks_unicode() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return encoding.lower().replace("-", "").startswith("utf")
