"""Failures that a run's log, its optimiser and its predictions show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from evit_models.doctor.finding import Finding, some
from evit_models.training.loading import bottleneck

_FEWEST_CLIPS, _FEWEST_STEPS = 10, 20
_COLLAPSED = 0.9  # share of the videos that are given one class
_CHANCE = 1.2  # how much better than one class for all a collapsed network may still be


def collapsed_predictions(heads: Mapping[str, Mapping[str, float]], source: str) -> Finding:
    """Whether nearly all videos are given one class, whatever they show.

    Args:
        heads: for every head "clips", "classes" (that occur), "top1", "mean_class", "majority"
            (share of the commonest class) and "predicted_majority" (share of the class that was
            named most often), as `metrics.figures` has them.
        source: whose predictions they are.
    """
    name = "collapsed_predictions"
    rows = {head: row for head, row in heads.items() if row["clips"] >= _FEWEST_CLIPS}
    if not rows:
        clips = max((row["clips"] for row in heads.values()), default=0)
        return Finding(name, "unchecked", f"{source}: {clips} videos are too few to tell")
    verdict, parts = "ok", []
    for head, row in rows.items():
        label = "" if len(rows) == 1 else f"{head}: "
        parts.append(
            f"{label}{_percent(row['predicted_majority'])} of {int(row['clips'])} videos are given "
            f"one class, top-1 is {_percent(row['top1'])}, the commonest class alone "
            f"{_percent(row['majority'])}"
        )
        one_for_all = row["mean_class"] <= _CHANCE / max(1, row["classes"])
        if row["classes"] > 1 and row["predicted_majority"] >= _COLLAPSED and one_for_all:
            verdict = "broken"
        elif row["classes"] > 1 and row["top1"] <= row["majority"] and verdict == "ok":
            verdict = "warning"
    advice = {
        "ok": "",
        "warning": "the network is no better than always naming one class: train longer, or look "
        "at the learning rate and at the labels",
        "broken": "look at the learning rate (too high, most often), at the balance of the "
        "classes, and whether evaluation sees what training saw (pixel statistics, frames)",
    }
    return Finding(name, verdict, f"{source}: {'; '.join(parts)}", advice[verdict])


def flat_loss(log: Sequence[Mapping[str, Any]], classes: Sequence[int]) -> Finding:
    """Whether the loss of training never fell, or rose again.

    Args:
        log: a run's lines. classes: of every head; their logarithms are the loss of a guess.
    """
    name = "flat_loss"
    losses = np.array([row["loss"] for row in log if row["kind"] == "step"])
    if len(losses) < _FEWEST_STEPS:
        return Finding(
            name, "unchecked", f"{len(losses)} steps in the log, {_FEWEST_STEPS} are needed"
        )
    part = max(5, len(losses) // 10)
    means = np.convolve(losses, np.full(part, 1 / part), mode="valid")
    first, last, best = float(means[0]), float(means[-1]), float(means.min())
    guess = sum(map(math.log, classes))
    evidence = (
        f"mean loss of the first {part} steps {first:.3f}, of the last {last:.3f}, lowest "
        f"{best:.3f}; a guess has {guess:.3f}"
    )
    if last > 2 * guess:
        advice = "it diverged: lower lr, a longer warm-up, or clip_norm"
        return Finding(name, "broken", evidence, advice)
    if last > 0.8 * guess and best > 0.97 * min(first, guess):
        advice = (
            "it learned nothing: look at the learning rate, at what is frozen, at the labels, and "
            "whether one batch can be learned by heart"
        )
        return Finding(name, "broken", evidence, advice)
    if last > 1.3 * best and last > 0.5 * guess:
        return Finding(
            name, "broken", f"it fell and rose again: {evidence}", "lower lr, or clip_norm"
        )
    return Finding(name, "ok", evidence)


def skipped_steps(log: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether many steps were left out because loss or gradient were not finite."""
    name = "skipped_steps"
    skipped = sum(row["kind"] == "skip" for row in log)
    steps = sum(row["kind"] == "step" for row in log) + skipped
    if not steps:
        return Finding(name, "unchecked", "there is no step in the log")
    evidence = f"{skipped} of {steps} steps had no finite loss and gradient"
    if skipped <= 0.05 * steps:
        return Finding(name, "ok", evidence)
    return Finding(name, "warning", evidence, "lower lr, longer warm-up, or precision bf16 or fp32")


def data_bound(log: Sequence[Mapping[str, Any]], workers: int) -> Finding:
    """Whether training waited for clips."""
    name = "data_bound"
    steps = [row for row in log if row["kind"] == "step" and row.get("clips_per_second")]
    if not steps:
        return Finding(name, "unchecked", "there is no step in the log")
    seconds = np.array([row["clips"] / row["clips_per_second"] for row in steps])
    waited = float((seconds * [row["data_share"] for row in steps]).sum())
    advice = bottleneck(waited, float(seconds.sum()), workers)
    evidence = f"{_percent(waited / float(seconds.sum()))} of the time went into waiting for clips"
    if advice is None:
        return Finding(name, "ok", evidence)
    return Finding(name, "warning", evidence, advice.partition("What helps: ")[2])


def unreadable_videos(log: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether videos could not be read, in training or in the last evaluation."""
    name = "unreadable_videos"
    replaced = [
        row["text"] for row in log if row["kind"] == "warning" and "stood for" in row["text"]
    ]
    evaluations = [row for row in log if row["kind"] == "evaluation"]
    bad = evaluations[-1]["unreadable"] if evaluations else 0
    if not (replaced or bad):
        return Finding(name, "ok", "the log tells of none")
    example = f", such as {replaced[0].partition(';')[0]}" if replaced else ""
    return Finding(
        name,
        "warning",
        f"{len(replaced)} in training{example}; {bad} in the last evaluation",
        "take them out of the list; evit prepare finds them all",
    )


def corrupt_checkpoints(problems: Sequence[str], whole: int) -> Finding:
    """Whether checkpoints of the run are not what was written.

    Args:
        problems: in words, one of each. whole: how many are as they should be.
    """
    name = "corrupt_checkpoints"
    if problems:
        advice = "the run goes on from an older one, if there is any; look at the disk"
        verdict = "warning" if whole else "broken"
        return Finding(name, verdict, "; ".join(problems), advice)
    if not whole:
        return Finding(name, "unchecked", "the run has no checkpoints")
    return Finding(name, "ok", f"{whole} with the right checksum")


def decay_on_norms(
    groups: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor], order: Sequence[str]
) -> Finding:
    """Whether weight decay pulls norms and biases to 0.

    Args:
        groups: `param_groups` of an optimiser's state. tensors: the weights, by name.
        order: names of the model's parameters, for groups that only number them.
    """
    name = "decay_on_norms"
    numbered = sum(len(group["params"]) for group in groups)
    decayed, vectors = [], 0
    for group in groups:
        names = group.get("names")
        if names is None:
            if numbered != len(order):
                return Finding(
                    name,
                    "unchecked",
                    f"the optimiser has {numbered} tensors without names, the model {len(order)}",
                )
            names = [order[number] for number in group["params"]]
        flat = [key for key in names if key in tensors and tensors[key].dim() < 2]
        vectors += len(flat)
        if group.get("weight_decay") or group.get("decoupled_decay"):
            decayed += flat
    if decayed:
        return Finding(
            name,
            "broken",
            f"{len(decayed)} of {vectors} norms and biases decay: {some(decayed)}",
            "let only tensors of two and more axes decay "
            "(evit_models.training.optimizer.parameter_groups)",
        )
    return Finding(name, "ok", f"none of {vectors} norms and biases decays")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
