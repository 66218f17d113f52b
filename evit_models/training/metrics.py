"""Figures of an evaluation, from what was predicted for every single clip.

Processes exchange predictions, not averages: every clip is in the result once, whatever the
number of processes and the sizes of their shards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class Predictions:
    """What one head said of each clip.

    Args:
        index: the clip's number in the dataset, (N,).
        label: its class, (N,). best: the classes with the highest scores, best first, (N, k).
        loss: cross entropy of its averaged scores, (N,).
        shares: the scores of `best`, as shares from 0 to 1, (N, k).
    """

    index: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    label: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    best: Ints = field(default_factory=lambda: np.empty((0, 1), np.int64))
    loss: Floats = field(default_factory=lambda: np.empty(0))
    shares: Floats = field(default_factory=lambda: np.empty((0, 1)))


def merge(parts: Iterable[Predictions]) -> Predictions:
    """Returns the predictions of all parts in the order of the dataset, each clip once."""
    filled = [part for part in parts if len(part.index)]
    if not filled:
        return Predictions()
    index, first = np.unique(np.concatenate([part.index for part in filled]), return_index=True)
    return Predictions(
        index,
        np.concatenate([part.label for part in filled])[first],
        np.concatenate([part.best for part in filled])[first],
        np.concatenate([part.loss for part in filled])[first],
        np.concatenate([part.shares for part in filled])[first],
    )


def figures(predictions: Predictions, num_classes: int) -> dict[str, float]:
    """Returns the figures of one head, as shares from 0 to 1.

    "top1" and "top5"; "mean_class", the mean of top-1 over the classes that occur; "majority", what
    always naming the commonest class would get; "predicted_majority", the share of the class that
    was named most often: near 1, the network has collapsed; "loss"; "clips" and "classes", how many
    there are.
    """
    label, best = predictions.label, predictions.best
    count = len(label)
    if count == 0:
        return {"clips": 0}
    right = best[:, 0] == label
    per_class = np.bincount(label, minlength=num_classes)
    right_per_class = np.bincount(label[right], minlength=num_classes)
    occurs = per_class > 0
    named = np.bincount(best[:, 0], minlength=num_classes)
    return {
        "top1": float(right.mean()),
        "top5": float((best[:, :5] == label[:, None]).any(1).mean()),
        "mean_class": float((right_per_class[occurs] / per_class[occurs]).mean()),
        "majority": float(per_class.max() / count),
        "predicted_majority": float(named.max() / count),
        "loss": float(predictions.loss.mean()),
        "clips": count,
        "classes": int(occurs.sum()),
    }


def majority_figures(labels: Ints) -> dict[str, float]:
    """Returns what the same answer for every clip gets: the commonest classes, commonest first.

    "class", the commonest; its "top1"; "top5" of the five commonest; "mean_class" of one class that
    is always right.
    """
    counts = np.bincount(labels)
    commonest = np.argsort(-counts, kind="stable")
    return {
        "class": int(commonest[0]),
        "top1": float(counts[commonest[0]] / len(labels)),
        "top5": float(counts[commonest[:5]].sum() / len(labels)),
        "mean_class": 1 / int((counts > 0).sum()),
    }


def confusion_matrix(predictions: Predictions, num_classes: int) -> Ints:
    """Returns how often clips of class `row` were called class `column`."""
    cells = predictions.label * num_classes + predictions.best[:, 0]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
