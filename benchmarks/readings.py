"""JSON of benchmark runs, read: which peer took how long in which round. Needs nothing but Python.

A result may hold groups of the CPU and of a GPU; rows of the latter begin with "gpu ".
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GPU = "gpu "

# As rounds.py names them.
OURS, NCDHW, LAST, COMPILED = "ours", "PyTorch NCDHW", "PyTorch channels_last_3d", "torch.compile"
TWO_CALLS, SINGLE_CALLS = "ours, two calls", "ours, single calls"
FLOOR = "copy"

Rounds = dict[str, list[float]]  # per peer one number a round
Cases = dict[str, Rounds]
Results = dict[str, Cases]


def read(path: Path) -> dict[str, Any]:
    """The JSON of a run."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def all_results(folder: Path = RESULTS) -> list[tuple[Path, dict[str, Any]]]:
    """The committed results of timed benchmarks, oldest first."""
    found = [(path, read(path)) for path in folder.glob("*.json")]
    found = [(path, content) for path, content in found if "benchmarks" in content]
    return sorted(found, key=lambda pair: str(pair[1]["datetime"]))


def rows_of(content: dict[str, Any]) -> set[str]:
    """Names of the rows that a run measured."""
    return {entry["extra_info"].get("row", "") for entry in content["benchmarks"]}


def collect(content: dict[str, Any], what: str) -> Results:
    """Per row, case and peer one number a round: "seconds" or another list that was recorded."""
    results: Results = {}
    for entry in content["benchmarks"]:
        info = entry["extra_info"]
        if "row" not in info:
            continue
        values = entry["stats"]["data"] if what == "seconds" else info.get(what)
        if values and None not in values:
            results.setdefault(info["row"], {}).setdefault(info["case"], {})[info["peer"]] = values
    return results


def paired_ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios within rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    line: Callable[[Iterable[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    names = tuple(head)
    return "\n".join([line(names), line("---" for _ in names), *(line(row) for row in rows)])
