"""The table of GPU results that the README shows, with the targets on an H200.

A share of the floor is the time of a copy of the same bytes over ours; a ratio says how many times
longer another takes. Each is the median over rounds, and over cases their geometric mean. "Ours" is
the backend that is fastest over all cases of a row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from readings import (
    FLOOR,
    GPU,
    NCDHW,
    OURS,
    Cases,
    Rounds,
    collect,
    markdown,
    paired_ratio,
    rows_of,
)

BEGIN, END = "<!-- gpu-benchmarks:begin -->", "<!-- gpu-benchmarks:end -->"
GRAPH = ", captured graph"
Facts = dict[str, Any]
Result = tuple[Path, dict[str, Any]]


class Target(NamedTuple):
    """A line of the table: which cases of a row, and what is promised for them.

    Args:
        row, what: of the results, and in the table.
        chosen: whether a case belongs to it, by its facts.
        floor: least share of the copy's speed, of `flops` where that is set.
        default, best: how many times longer PyTorch in its default layout, and the best peer, take.
        flops: the floor is the peak of float32 arithmetic, not of memory.
        suffix: of the peers that are compared.
        memory: compared is the peak of memory; `default` is then the largest ratio of ours.
    """

    row: str
    what: str
    chosen: Callable[[Facts], bool]
    floor: float | None = None
    default: float | None = None
    best: float | None = None
    flops: bool = False
    suffix: str = ""
    memory: bool = False


def _large(facts: Facts) -> bool:
    return bool(facts["dtype"] == "bfloat16" and facts["batch"] >= 8)


def _early(facts: Facts) -> bool:
    return _large(facts) and facts["kernel"] == [3, 3, 3] and facts["stage"] <= 2


def _wide_window(facts: Facts) -> bool:
    return _large(facts) and facts["kernel"] == [5, 5, 5] and facts["frames"] >= 4


def _batch(size: int) -> Callable[[Facts], bool]:
    return lambda facts: bool(facts["batch"] == size and facts["dtype"] == "bfloat16")


_DEPTHWISE, _ATTENTION = "gpu depthwise_conv3d", "gpu relu_linear_attention"
_FORWARD, _STEP = "gpu model forward", "gpu model training step"
TARGETS = (
    Target(f"{_DEPTHWISE} forward", "depthwise 3x3x3, bias, hardswish, stages 0 to 2, batch >= 8",
           _early, 0.75, 8, 2),
    Target(f"{_DEPTHWISE} forward", "depthwise 5x5x5, bias, hardswish, T >= 4, batch >= 8",
           _wide_window, 0.55, 6, 2, flops=True),
    Target(f"{_DEPTHWISE} data gradient", "depthwise, gradient of the input, batch >= 8",
           _large, 0.7, 6, 2),
    Target(f"{_DEPTHWISE} weight gradient", "depthwise, gradients of weight and bias, batch >= 8",
           _large, 0.6, 8, 2),
    Target(f"{_ATTENTION} forward", "attention over two scales, forward, batch 64",
           _batch(64), 0.65, 8, 2),
    Target(f"{_ATTENTION} backward", "its gradients", _batch(64)),
    Target(_FORWARD, "b1 forward, batch 64", _batch(64), None, 4, 2),
    Target(_FORWARD, "b1 forward, batch 1", _batch(1)),
    Target(_FORWARD, "b1 forward, batch 1, captured graph", _batch(1), None, 8, 2, suffix=GRAPH),
    Target(_STEP, "b1 training step, batch 64", _batch(64), None, 4, 2),
    Target(_STEP, "peak memory of that step", _batch(64), None, 0.6, memory=True),
)  # fmt: skip


class Line(NamedTuple):
    """What a target came to: shares of the floor, ratios to the default layout and to the best."""

    target: Target
    ours: str
    floor: list[float]
    default: list[float]
    best: list[float]
    peers: list[str]


def newest(results: Sequence[Result]) -> list[Result]:
    """The parts of the newest run on a GPU: results of one day, device and version of torch."""
    of_gpus = [r for r in results if any(row.startswith(GPU) for row in rows_of(r[1]))]
    return [r for r in of_gpus if _run_of(r[1]) == _run_of(of_gpus[-1][1])]


def table(results: Sequence[Result]) -> str:
    """The block of markdown that the README shows for the parts of a run."""
    machine = results[-1][1]["machine_info"]
    merged = {"benchmarks": [entry for _, content in results for entry in content["benchmarks"]]}
    seconds, memory = collect(merged, "seconds"), collect(merged, "peak_bytes")
    facts = {entry["extra_info"]["case"]: entry["extra_info"] for entry in merged["benchmarks"]
             if "case" in entry["extra_info"]}  # fmt: skip
    lines = []
    for target in TARGETS:
        cases = (memory if target.memory else seconds).get(target.row, {})
        chosen = {case: rounds for case, rounds in cases.items() if target.chosen(facts[case])}
        line = compare(target, chosen, facts, machine.get("gpu_float32_flops"))
        if line is not None:
            lines.append(line)
    head = ("what", "by", "share of the floor", "PyTorch NCDHW", "best peer")
    return "\n\n".join(
        [
            _conditions(results),
            markdown(head, [_cells(line) for line in lines]),
            "The floor is a copy of the same bytes, for 5x5x5 the peak of float32 arithmetic. "
            "Ratios say how many times longer others take, of memory how much ours needs; in "
            "brackets stands what was aimed at on an H200. The best peer is the fastest of "
            "PyTorch's layouts and torch.compile for each case. Networks are timed by the wall's "
            "clock, operators by the device's; PyTorch NCDHW runs eagerly also where a graph is "
            "captured.",
        ]
    )


def compare(
    target: Target, cases: Cases, facts: Mapping[str, Facts], peak: float | None
) -> Line | None:
    """The line of a target; None where the run did not have all it needs."""
    complete = {c: r for c, r in cases.items() if NCDHW in r and _ours(target, r)}
    if not complete:
        return None
    names = set.intersection(*(set(_ours(target, rounds)) for rounds in complete.values()))
    if not names:
        return None
    # One backend for the row: who takes the best of each case would be nobody's choice.
    ours = min(
        sorted(names),
        key=lambda n: statistics.geometric_mean(
            statistics.median(rounds[n]) for rounds in complete.values()
        ),
    )
    line = Line(target, ours, [], [], [], [])
    for case, rounds in complete.items():
        mine = rounds[ours]
        if target.memory:
            line.default.append(paired_ratio(mine, rounds[NCDHW]))
            continue
        line.default.append(paired_ratio(rounds[NCDHW], mine))
        peer = min(_others(target, rounds), key=lambda name: statistics.median(rounds[name]))
        line.best.append(paired_ratio(rounds[peer], mine))
        line.peers.append(peer.removesuffix(GRAPH))
        if target.flops and peak:
            line.floor.append(facts[case]["flops"] / peak / statistics.median(mine))
        elif not target.flops and FLOOR in rounds:
            line.floor.append(paired_ratio(rounds[FLOOR], mine))
    return line


def replaced(text: str, block: str | None, after: str) -> str:
    """The README with the block between its markers, which follow `after` where there are none."""
    if block is None:
        return text
    shown = f"{BEGIN}\n{block}\n{END}"
    if BEGIN in text:
        before, _, rest = text.partition(BEGIN)
        return before + shown + rest.partition(END)[2]
    before, marker, rest = text.partition(after)
    return f"{before}{marker}\n\n{shown}{rest}"


def _ours(target: Target, rounds: Rounds) -> list[str]:
    return [n for n in rounds if n.startswith(OURS) and n.endswith(GRAPH) == bool(target.suffix)]


def _others(target: Target, rounds: Rounds) -> list[str]:
    """Others may be captured where ours is, and need not be."""
    names = [name for name in rounds if name != FLOOR and not name.startswith(OURS)]
    return names if target.suffix else [name for name in names if not name.endswith(GRAPH)]


def _run_of(content: dict[str, Any]) -> tuple[str, ...]:
    machine = content["machine_info"]
    return content["datetime"][:10], str(machine.get("gpu")), str(machine.get("torch"))


def _conditions(results: Sequence[Result]) -> str:
    content = results[-1][1]
    machine = content["machine_info"]
    links = ", ".join(f"[{path.name}](benchmarks/results/{path.name})" for path, _ in results)
    return (
        f"{machine.get('gpu', 'no GPU: only a trial on the CPU')}, "
        f"driver {machine.get('driver')}, CUDA {machine.get('cuda')}, "
        f"cuDNN {machine.get('cudnn')}, torch {machine['torch']}, evit {machine['evit']}, "
        f"{content['datetime'][:10]}, bfloat16. All rounds: {links}."
    )


def _cells(line: Line) -> tuple[str, ...]:
    target, count = line.target, len(line.default)
    what = target.what + (f" ({count} cases)" if count > 1 else "")
    peers = sorted(set(line.peers))
    best = _ratio(line.best, target.best)
    return (
        what,
        line.ours.removesuffix(GRAPH),
        _share(line.floor, target.floor),
        _ratio(line.default, target.default, ceiling=target.memory),
        f"{best}: {' or '.join(peers)}" if best else "",
    )


def _share(values: list[float], target: float | None) -> str:
    if not values:
        return ""
    overall = statistics.geometric_mean(values)
    text = f"{100 * overall:.0f} %"
    return text if target is None else _judged(text, overall >= target, f"{100 * target:.0f} %")


def _ratio(values: list[float], target: float | None, *, ceiling: bool = False) -> str:
    if not values:
        return ""
    overall = statistics.geometric_mean(values)
    text = f"{overall:.2f}x"
    if len(values) > 1:
        text += f" ({min(values):.2f} to {max(values):.2f})"
    if target is None:
        return text
    met = overall <= target if ceiling else overall >= target
    return _judged(text, met, f"{target:g}x")


def _judged(text: str, met: bool, target: str) -> str:
    return f"**{text}** [{target}]" if met else f"{text} [{target}, missed]"
