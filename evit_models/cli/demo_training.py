"""Second part of `evit demo`: a network learns motion, and then classifies videos of it."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import UserError

if TYPE_CHECKING:
    from evit_models.video.datasets import MotionClips

_PRESET, _RUN, _VIDEOS = "motion", "training", "held-out"


def train_and_classify(
    folder: Path, epochs: int | None, *, keep_checkpoints: bool, quiet: bool
) -> dict[str, Any]:
    """Train on `MotionClips`, write an mp4 of every class, and classify those with the weights.

    The folder gets the run (``training``) and the videos (``held-out``), which are of the split
    "test": neither training nor its evaluation has seen their scenes or textures.
    """
    from evit_models.cli.train import run_training
    from evit_models.training import Ranks, load_config
    from evit_models.training.logging import read_log
    from evit_models.training.objective import SINGLE
    from evit_models.training.run import BEST, CHECKPOINTS, CURVES_FILE
    from evit_models.video.datasets import MotionClips
    from evit_models.video.datasets.motion import KINDS

    config = load_config(preset=_PRESET, overrides={"epochs": epochs} if epochs else None)
    classes = sum(map(len, KINDS.values()))
    clips = MotionClips("test", classes, config.frames, config.size, config.seed)
    if not quiet:
        click.echo(
            f"Training {config.model} on clips of {config.frames} frames of {config.size} x "
            f"{config.size} pixels that are made on the way.\n"
            f"Classes: {', '.join(clips.class_names)}.\n"
            f"Without the order of frames, {100 * clips.chance:.0f} % is the best anyone could do."
        )
    run, start = folder / _RUN, time.perf_counter()
    last = run_training(config, run, Ranks(), quiet=quiet)
    seconds = time.perf_counter() - start
    if not keep_checkpoints:
        for name in (CHECKPOINTS, BEST):
            shutil.rmtree(run / name, ignore_errors=True)
    try:
        listing = clips.write(folder / _VIDEOS)
    except OSError as error:
        raise UserError(f"--output: {error}") from error
    held_out = _classify(run, listing.parent, clips)
    return {
        "model": config.model,
        "classes": clips.class_names,
        "chance_without_order": clips.chance,
        "seconds": seconds,
        "steps": last["step"],
        "validation": [
            {"epoch": row["epoch"] + 1, "top1": row["heads"][SINGLE]["top1"]}
            for row in read_log(run)
            if row["kind"] == "evaluation"
        ],
        "weights": str(run / "model.safetensors"),
        "curves": str(run / CURVES_FILE),
        "held_out": held_out,
    }


def _classify(run: Path, folder: Path, clips: MotionClips) -> list[dict[str, Any]]:
    from evit_models.cli.predict import plan_clips, predict
    from evit_models.cli.weights import choose_model
    from evit_models.video import VideoReader

    model = choose_model(None, str(run), classes=None, temporal_strides=None, backend=None).model
    rows = []
    for index, label in enumerate(clips.labels):
        path = folder / f"{index:05d}.mp4"
        with VideoReader(path) as reader:
            (best,) = predict(reader, model, plan_clips(model), topk=1, quiet=True)
        rows.append(
            {
                "video": str(path),
                "shows": clips.class_names[label],
                "seen_as": best["label"],
                "probability": best["probability"],
            }
        )
    return rows


def print_training(facts: dict[str, Any]) -> None:
    """Tell what `train_and_classify` found."""
    from evit_models.cli.ui import print_bars, print_table

    click.echo(
        f"\nAccuracy on held-out clips, after {facts['seconds']:.0f} s and {facts['steps']} steps:"
    )
    print_bars(
        [
            (f"epoch {row['epoch']}", row["top1"], f"{100 * row['top1']:.1f} %")
            for row in facts["validation"]
        ],
        largest=1.0,
    )
    rows = facts["held_out"]
    right = sum(row["shows"] == row["seen_as"] for row in rows)
    click.echo(
        f"\nVideo files of other scenes, as `evit classify` sees them, {right} of "
        f"{len(rows)} right:"
    )
    print_table(
        ("file", "shows", "seen as", "probability"),
        [
            (
                Path(row["video"]).name,
                row["shows"],
                row["seen_as"],
                f"{100 * row['probability']:.1f} %",
            )
            for row in rows
        ],
        numbers=(3,),
    )
    click.echo(f"\nCurves of loss and accuracy: {facts['curves']}")
    again = ("evit", "classify", rows[0]["video"], "--checkpoint", facts["weights"])
    click.echo(f"Try: {shlex.join(again)}")
