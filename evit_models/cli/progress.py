"""What a user sees of training: one bar on a terminal, about twenty lines of it elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from types import TracebackType
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from evit_models.cli.ui import console

_LINES = 20
_RECENT = 30  # steps whose means are shown


class TrainingDisplay:
    """Shows the events of a `Trainer`; a context, and an observer."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._recent: dict[str, deque[float]] = {}
        self._progress: Progress | None = None
        self._last = ""
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=console(stderr=True))
            self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> TrainingDisplay:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, kind: str, facts: dict[str, Any]) -> None:
        """Takes one event of the trainer."""
        if self._quiet:
            return
        if kind == "step":
            self._step(facts)
        elif kind == "features":
            self._features(facts["done"], facts["total"])
        elif kind == "evaluation":
            self._say(_evaluation(facts))
        elif kind == "resume":
            self._say(f"Goes on from step {facts['step']}: {facts['checkpoint']}")
        elif kind == "warning":
            self._say(f"evit: warning: {facts['text']}")

    def _step(self, facts: dict[str, Any]) -> None:
        for name in ("loss", "accuracy", "clips_per_second", "data_share"):
            if name in facts:
                self._recent.setdefault(name, deque(maxlen=_RECENT)).append(facts[name])
        means = {name: sum(values) / len(values) for name, values in self._recent.items()}
        step, total = facts["step"], facts["total_steps"]
        text = (
            f"epoch {facts['epoch'] + 1}  loss {means.get('loss', float('nan')):.3f}  "
            f"accuracy {100 * means['accuracy']:.1f} %  {means['clips_per_second']:.1f} clips/s  "
            f"data {100 * means['data_share']:.0f} %  {facts['memory_gb']:.1f} GB"
        )
        if facts["skipped"]:
            text += f"  {facts['skipped']} skipped"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, total=total, description=text)
        elif step == total or step % max(1, total // _LINES) == 0:
            click.echo(f"step {step}/{total}  {text}", err=True)

    def _features(self, done: int, total: int) -> None:
        text = "features of the frozen backbone"
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total, description=text)
        elif done == total or done % max(1, total // _LINES) == 0:
            click.echo(f"{text}: {done}/{total}", err=True)

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text)
        else:
            click.echo(text, err=True)


def _evaluation(facts: dict[str, Any]) -> str:
    parts = []
    for head, row in facts["heads"].items():
        name = "" if len(facts["heads"]) == 1 else f"{head} "
        if row["clips"]:
            parts.append(
                f"{name}top-1 {100 * row['top1']:.2f} % (commonest class alone "
                f"{100 * row['majority']:.2f} %), top-5 {100 * row['top5']:.2f} %"
            )
    bad = f", {facts['unreadable']} videos could not be read" if facts["unreadable"] else ""
    return f"Epoch {facts['epoch'] + 1}: {'; '.join(parts) or 'no clip could be read'}{bad}"
