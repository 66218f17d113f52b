"""The table of who learns the order of time, from the result of motion.py. Needs only Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from readings import RESULTS, markdown, read

BEGIN, END = "<!-- motion:begin -->", "<!-- motion:end -->"
RESULT = RESULTS / "motion.json"
NAMES = {
    "ours": "EfficientViT-3D b0, our defaults",
    "original": "the same with temporal strides of 2 and zero padding (published adaptation)",
    "frames": "the same shown single frames, logits averaged (2-D network)",
}
LEARNT = 0.95  # of the validation clips


def table(path: Path = RESULT) -> str:
    """The block of markdown that the README shows for a result."""
    content = read(path)
    kinds = list(content["runs"][0]["kinds"])
    rows = []
    for who, name in NAMES.items():
        runs = [run for run in content["runs"] if run["who"] == who]
        if runs:
            shares = [_spread([run["kinds"][kind] for run in runs]) for kind in kinds]
            rows.append((name, _spread([run["top1"] for run in runs], bold=True), *shares,
                         _clips(runs, content["setting"]["preset"]["batch_size"])))  # fmt: skip
    majority = content["runs"][0]["majority"]
    rows.append(("always the commonest class", _percent(majority), *("" for _ in kinds), "never"))
    head = ("network", "top-1", *kinds, f"clips until {100 * LEARNT:.0f} %")
    return "\n\n".join((_conditions(content, path), markdown(head, rows), _explanation(content)))


def replaced(text: str, path: Path = RESULT) -> str:
    """The README with the table between its markers; as it is where there are none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin:
        return text
    if not end:
        raise SystemExit(f"README.md lacks the marker {END}")
    return f"{before}{begin}\n{table(path)}\n{end}{after}"


def _conditions(content: dict[str, Any], path: Path) -> str:
    machine, preset = content["machine_info"], content["setting"]["preset"]
    seeds = {run["seed"] for run in content["runs"]}
    steps = max(run["steps"] for run in content["runs"])
    return (
        f"{content['setting']['test_clips']} held-out clips of {preset['frames']} frames of "
        f"{preset['size']} x {preset['size']} pixels, after {steps} steps of "
        f"{preset['batch_size']} clips; {len(seeds)} seeds. {machine['cpu']}, "
        f"{content['datetime'][:10]}, evit {machine['evit']}, torch {machine['torch']}. "
        f"All runs: [{path.name}](benchmarks/results/{path.name})."
    )


def _explanation(content: dict[str, Any]) -> str:
    chance = content["runs"][0]["chance_without_order"]
    return (
        "Mean over seeds, lowest to highest in brackets where they differ. All have the same "
        "parameters, data, schedule and steps. Both classes of a kind show the same frames in "
        f"another order, so that {_percent(chance)} is the most that anything can reach that does "
        "not see the order. The last column says after how many clips of training a run first had "
        f"{100 * LEARNT:.0f} % of its validation clips right, looked at once per epoch."
    )


def _clips(runs: Sequence[dict[str, Any]], batch_size: int) -> str:
    """How many clips it took; only where every run came so far."""
    steps = [
        next((at["step"] for at in run["validation"] if at["top1"] >= LEARNT), None) for run in runs
    ]
    reached = [step * batch_size for step in steps if step is not None]
    if len(reached) < len(steps):
        return f"{len(reached)} of {len(steps)} runs" if reached else "never"
    mean = sum(reached) / len(reached)
    spread = f" ({min(reached)} to {max(reached)})" if min(reached) < max(reached) else ""
    return f"{mean:.0f}{spread}"


def _spread(shares: Sequence[float], *, bold: bool = False) -> str:
    mean = _percent(sum(shares) / len(shares))
    ends = [_percent(end) for end in (min(shares), max(shares))]
    text = f"**{mean}**" if bold else mean
    return text if ends[0] == ends[1] else f"{text} ({ends[0]} to {ends[1]})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
