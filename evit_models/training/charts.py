"""Pictures of a run: its curves, and who was taken for whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from evit_models.training.metrics import Ints

_MOST_NAMES, _MOST_COUNTS = 60, 30  # classes whose names, and whose counts, can still be read
_LONGEST_NAME = 28
_SMOOTH = 50  # about as many points as the smoothed curve has


def save_curves(log: Sequence[dict[str, Any]], path: Path, *, title: str = "") -> None:
    """Writes a PNG of loss, accuracy and learning rate over the steps of a run's log."""
    steps = sorted((row for row in log if row["kind"] == "step"), key=lambda row: row["step"])
    evaluations = [row for row in log if row["kind"] == "evaluation"]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    x = [row["step"] for row in steps]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        values = [row[name] for row in steps]
        axes.plot(x, values, color="0.8", linewidth=0.8)
        axes.plot(x, _smooth(values), color="tab:blue", label="training")
        axes.set(title=name, xlabel="step")
    for number, head in enumerate(evaluations[0]["heads"] if evaluations else ()):
        rows = [row for row in evaluations if row["heads"][head].get("clips")]
        at = [row["step"] for row in rows]
        label = "evaluation" if len(evaluations[0]["heads"]) == 1 else f"evaluation, {head}"
        style = {"color": f"C{number + 1}", "marker": ".", "label": label}
        loss.plot(at, [row["heads"][head]["loss"] for row in rows], **style)
        accuracy.plot(at, [row["heads"][head]["top1"] for row in rows], **style)
        majority = rows[-1]["heads"][head]["majority"] if rows else 0.0
        accuracy.axhline(majority, color=f"C{number + 1}", linestyle=":", linewidth=0.8)
    accuracy.set_ylim(-0.02, 1.02)
    accuracy.set_xlabel("step (dotted: the commonest class)")
    rate.plot(x, [row["lr"] for row in steps])
    rate.set(title="learning rate", xlabel="step")
    loss.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def save_confusion(matrix: Ints, path: Path, *, class_names: Sequence[str] | None = None) -> None:
    """Writes a PNG of a confusion matrix; rows are the true classes, as shares of their clips.

    Few classes have all their names, and counts in the cells; of many some names are shown, and
    colours in which a single mistake can still be seen. Rows of classes without clips are grey.
    """
    classes = len(matrix)
    clips = matrix.sum(1, keepdims=True)
    shares = np.ma.array(
        matrix / np.maximum(clips, 1), mask=np.broadcast_to(clips == 0, matrix.shape)
    )
    side = min(14.0, 3.0 + 0.32 * classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"].with_extremes(bad="0.85")
    image = axes.imshow(shares, norm=PowerNorm(0.5, 0, 1), cmap=colours, interpolation="nearest")
    axes.set(xlabel="predicted", ylabel="true")
    names = [_shortened(name) for name in class_names or map(str, range(classes))]
    ticks = range(0, classes, math.ceil(classes / _MOST_NAMES))
    axes.set_xticks(ticks, [names[place] for place in ticks], rotation=90)
    axes.set_yticks(ticks, [names[place] for place in ticks])
    if classes <= _MOST_COUNTS:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                dark = shares[row, column] < 0.4
                axes.text(
                    column, row, str(count), ha="center", va="center",
                    color="white" if dark else "black", fontsize=8,
                )  # fmt: skip
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=120)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _smooth(values: Sequence[float]) -> list[float]:
    """Running means over a fixed number of steps, shorter at the start."""
    width = max(1, len(values) // _SMOOTH)
    sums = np.cumsum([0.0, *values])
    return [
        float((sums[i + 1] - sums[max(0, i + 1 - width)]) / min(width, i + 1))
        for i in range(len(values))
    ]
