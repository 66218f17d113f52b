"""Turns the JSON of a benchmark run into the table of ratios that the README shows.

    python -m benchmarks.table [RESULTS.json]            prints the tables (newest by default)
    python -m benchmarks.table [RESULTS.json] --details  prints every case of every row
    python -m benchmarks.table [RESULTS.json] --write    puts the table into README.md
    python -m benchmarks.table --check                   fails unless README.md shows just that

A ratio is the median over rounds of the ratio within a round; over several shapes, the geometric
mean of those. Needs nothing but Python. Results of GPUs become a second table (gpu_table.py),
what networks learn a third (motion_table.py).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

# Also where this runs as `python -m benchmarks.table`.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_table
import motion_table
from readings import (
    COMPILED,
    GPU,
    LAST,
    NCDHW,
    OURS,
    ROOT,
    SINGLE_CALLS,
    TWO_CALLS,
    Cases,
    Results,
    Rounds,
    all_results,
    collect,
    markdown,
    paired_ratio,
    read,
    rows_of,
)

README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
NOT_YET = "Not measured yet."
LAYOUTS = (NCDHW, LAST)


class Row(NamedTuple):
    """A line of the table: the row of results, who is compared with, and what is promised.

    `target` is the least factor by which ours is faster, or, where `ceiling`, the largest ratio.
    """

    row: str
    what: str
    against: tuple[str, ...]
    target: float | None
    ceiling: bool = False


BETTER = "PyTorch, better layout"
TABLE = (
    Row("depthwise_conv3d forward", "depthwise 3-D convolution, bias and hardswish, forward",
        LAYOUTS, 1.3),
    Row("depthwise_conv3d forward", "the same", (NCDHW,), 5.0),
    Row("depthwise_conv3d backward", "its gradients: input, weight, bias", LAYOUTS, 12.0),
    Row("depthwise_conv3d+hardswish backward", "the same, through hardswish", LAYOUTS, None),
    Row("pointwise_depthwise_conv3d forward",
        "pointwise, then depthwise, each with bias and hardswish, forward", LAYOUTS, None),
    Row("pointwise_depthwise_conv3d forward", "the same", (TWO_CALLS,), None),
    Row("inverted bottleneck forward",
        "the same, then pointwise with bias and residual, forward", LAYOUTS, None),
    Row("inverted bottleneck forward", "the same", (SINGLE_CALLS,), None),
    Row("relu_linear_attention forward", "linear attention from packed qkv, forward", LAYOUTS, 3.0),
    Row("relu_linear_attention forward", "the same", (COMPILED,), None),
    Row("relu_linear_attention backward", "its gradient", LAYOUTS, 3.0),
    Row("relu_linear_attention backward", "the same", (COMPILED,), None),
    Row("model forward", "b1, one clip of 16x224x224, forward", LAYOUTS, 2.5),
    Row("model forward", "the same", (COMPILED,), None),
    Row("model forward", "the same", ("OpenVINO",), None),
    Row("model forward", "the same", ("ONNX Runtime",), None),
    Row("model training step", "b1, the same clip, training step", LAYOUTS, 4.0),
    Row("b0 training step", "b0, the same clip, training step", LAYOUTS, None),
    Row("b2 training step", "b2, the same clip, training step", LAYOUTS, None),
    Row("training loop", "training b1 at 16x112x112 on prepared mp4 files, whole loop",
        ("DummyClips",), 0.85),
    Row("model training step memory", "peak memory of that step", LAYOUTS, 0.7, ceiling=True),
)  # fmt: skip
SCALING = (
    Row("model forward by frames", "b1 forward, twice the frames (8 to 128)", (), 2.1, True),
    Row("relu_linear_attention forward by frames", "attention forward, twice the frames (8 to 128)",
        (), 2.1, True),
)  # fmt: skip


class Line(NamedTuple):
    """What a row came to: per case a ratio, and the peer that was compared with."""

    row: Row
    ratios: dict[str, float]
    peers: dict[str, str]

    @property
    def worst(self) -> float:
        """The ratio of the least favourable case."""
        return (max if self.row.ceiling else min)(self.ratios.values())

    @property
    def overall(self) -> float:
        """What the target is for: the geometric mean of cases; of doublings, the worst."""
        if not self.row.against:
            return self.worst
        return statistics.geometric_mean(self.ratios.values())

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.row.target is None:
            return None
        met = self.overall <= self.row.target if self.row.ceiling else None
        return self.overall >= self.row.target if met is None else met


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="?", type=Path, help="JSON of a run [default: the newest]")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--details", action="store_true", help="print every case of every row")
    what.add_argument("--write", action="store_true", help="put the table into README.md")
    what.add_argument("--check", action="store_true", help="fail unless README.md shows the table")
    arguments = parser.parse_args()
    paths = [arguments.results] if arguments.results else newest()
    if arguments.details:
        print(details(read(paths[0])) if paths else NOT_YET)
        return 0
    if arguments.results and all(row.startswith(GPU) for row in rows_of(read(paths[0]))):
        print(gpu_table.table([(paths[0], read(paths[0]))]))
        return 0
    block = tables(paths) if paths else NOT_YET
    on_gpu = gpu_table.newest(all_results())
    gpu_block = gpu_table.table(on_gpu) if on_gpu else None
    text = README.read_text(encoding="utf-8")
    shown = gpu_table.replaced(replaced(text, block), gpu_block, after=END)
    shown = motion_table.replaced(shown)
    if arguments.write:
        README.write_text(shown, encoding="utf-8")
    elif arguments.check:
        if shown != text:
            print(
                "README.md does not show the newest results: run python -m benchmarks.table --write"
            )
            return 1
        names = [path.name for path in [*paths, *(path for path, _ in on_gpu)]]
        print(f"README.md shows {', '.join(names) or 'that nothing was measured yet'}.")
    else:
        motion = motion_table.table() if motion_table.RESULT.exists() else None
        print("\n\n".join(filter(None, (block, gpu_block, motion))))
    return 0


def newest() -> list[Path]:
    """The last committed result of every processor and instruction set, the newest first."""
    paths: dict[tuple[str, str], Path] = {}
    for path, content in reversed(all_results()):
        if any(row and not row.startswith(GPU) for row in rows_of(content)):
            machine = (_processor(content), content["machine_info"]["evit_instruction_set"])
            paths.setdefault(machine, path)
    return list(paths.values())


def tables(paths: list[Path]) -> str:
    """The block of markdown that the README shows for results."""
    return "\n\n".join([*map(table, paths), _explanation()])


def table(path: Path) -> str:
    """The conditions, ratios and times of one result."""
    content = read(path)
    results = collect(content, "seconds")
    memory = collect(content, "peak_bytes")
    lines = []
    for row in TABLE:
        cases = (memory if row.ceiling else results).get(row.row, {})
        lines += compare(row, cases)
    for row in SCALING:
        lines += doublings(row, results.get(row.row, {}))
    rows = [
        (f"{_what(line)}", _against(line), _promise(line.row), _measured(line), _range(line))
        for line in lines
    ]
    head = ("what", "against", "at least", "measured", "lowest to highest case")
    return "\n\n".join([_conditions(content, path), markdown(head, rows), _times(results)])


def compare(row: Row, cases: Cases) -> list[Line]:
    """The line of a row, none where the run did not have all it needs."""
    ratios, peers = {}, {}
    for case, rounds in cases.items():
        if OURS not in rounds or not all(peer in rounds for peer in row.against):
            continue
        # The better of several peers is found by its median, and only then compared in rounds.
        peer = min(row.against, key=lambda name: statistics.median(rounds[name]))
        pair = (rounds[OURS], rounds[peer]) if row.ceiling else (rounds[peer], rounds[OURS])
        ratios[case], peers[case] = paired_ratio(*pair), peer
    return [Line(row, ratios, peers)] if ratios else []


def doublings(row: Row, cases: Cases) -> list[Line]:
    """The line of a row whose peers are lengths T=8, T=16, and so on."""
    ratios = {}
    for rounds in cases.values():
        lengths = sorted(rounds, key=lambda name: int(name.removeprefix("T=")))
        for short, long in pairwise(lengths):
            ratios[f"{short} to {long}"] = paired_ratio(rounds[long], rounds[short])
    return [Line(row, ratios, {})] if ratios else []


def replaced(text: str, block: str) -> str:
    """The README with the block between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{before}{begin}\n{block}\n{end}{after}"


def details(content: dict[str, Any]) -> str:
    """Every case: median milliseconds of every peer, and the paired ratio to ours."""
    blocks = []
    for row, cases in collect(content, "seconds").items():
        peers = list(dict.fromkeys(peer for rounds in cases.values() for peer in rounds))
        rows = [(case, *(_cell(rounds, peer) for peer in peers)) for case, rounds in cases.items()]
        blocks.append(f"### {row}\n\n" + markdown(("case", *peers), rows))
    return "\n\n".join(blocks)


def _cell(rounds: Rounds, peer: str) -> str:
    if peer not in rounds:
        return "absent"
    text = f"{1e3 * statistics.median(rounds[peer]):.3g} ms"
    if peer == OURS or OURS not in rounds:
        return text
    return f"{text} ({paired_ratio(rounds[peer], rounds[OURS]):.2f}x)"


def _what(line: Line) -> str:
    count = len(line.ratios)
    many = count > 1 and bool(line.row.against) and line.row.what != "the same"
    return line.row.what + (f" ({count} shapes)" if many else "")


def _against(line: Line) -> str:
    if not line.row.against:
        return "itself"
    if len(line.row.against) == 1:
        return line.row.against[0]
    used = set(line.peers.values())
    return BETTER if len(used) > 1 else f"{BETTER} ({used.pop().removeprefix('PyTorch ')})"


def _promise(row: Row) -> str:
    if row.target is None:
        return ""
    return f"at most {row.target:g}x" if row.ceiling else f"{row.target:g}x"


def _measured(line: Line) -> str:
    number = f"{line.overall:.2f}x"
    return number if line.met is None else f"**{number}**" if line.met else f"{number} (missed)"


def _range(line: Line) -> str:
    if len(line.ratios) == 1:
        return ""
    return f"{min(line.ratios.values()):.2f}x to {max(line.ratios.values()):.2f}x"


def _times(results: Results) -> str:
    rows = []
    for name in ("model forward", "model training step"):
        for rounds in results.get(name, {}).values():
            rows += [
                (name, peer, f"{1e3 * statistics.median(times):.1f}")
                for peer, times in rounds.items()
            ]
    return markdown(("b1, one clip of 16x224x224", "by", "ms, median"), rows)


def _processor(content: dict[str, Any]) -> str:
    machine = content["machine_info"]
    return str(machine.get("cpu", {}).get("brand_raw", machine["machine"]))


def _conditions(content: dict[str, Any], path: Path) -> str:
    machine = content["machine_info"]
    rounds = max(len(entry["stats"]["data"]) for entry in content["benchmarks"])
    return (
        f"{_processor(content)}, {machine['threads']} threads, float32, {rounds} paired rounds, "
        f"{content['datetime'][:10]}. evit {machine['evit']} ({machine['evit_instruction_set']}), "
        f"torch {machine['torch']} ({machine['onednn']}). All rounds: "
        f"[{path.name}](benchmarks/results/{path.name})."
    )


def _explanation() -> str:
    return (
        "Times are how many times longer the other takes: the median of the ratios within rounds, "
        "and the geometric mean of those over shapes. The better layout is chosen for each shape. "
        "PyTorch runs eagerly unless another is named."
    )


if __name__ == "__main__":
    sys.exit(main())
