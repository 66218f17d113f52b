"""Pictures of a run: its curves, and who was taken for whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evit_models.training.metrics import Ints

_MOST_NAMES = 40  # ticks that can still be read
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
    """Writes a PNG of a confusion matrix; rows are the true classes, as shares of their clips."""
    classes = len(matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(12.0, 3.0 + 0.3 * classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    axes.set(xlabel="predicted", ylabel="true")
    if classes <= _MOST_NAMES:
        names = class_names or [str(number) for number in range(classes)]
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
    figure.colorbar(image, label="share of the true class")
    figure.savefig(path, dpi=120)


def _smooth(values: Sequence[float]) -> list[float]:
    """Running means over a fixed number of steps, shorter at the start."""
    width = max(1, len(values) // _SMOOTH)
    sums = np.cumsum([0.0, *values])
    return [
        float((sums[i + 1] - sums[max(0, i + 1 - width)]) / min(width, i + 1))
        for i in range(len(values))
    ]
