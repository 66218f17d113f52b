"""`evit classify VIDEO`: what a model sees in a video."""

from __future__ import annotations

import time
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import debug_option, json_option, model_options

if TYPE_CHECKING:
    from evit_models.video import VideoInfo


@click.command()
@click.argument("video", type=click.Path())
@click.option(
    "--model",
    "name",
    metavar="NAME",
    help="See `evit models`. [default: the checkpoint's, else efficientvit3d_b1]",
)
@click.option("--checkpoint", type=click.Path(), help="Weights: .safetensors, .pt or .pth.")
@click.option(
    "--labels",
    type=click.Path(),
    help="Names of the classes: one a line, or JSON. [default: the checkpoint's]",
)
@click.option(
    "--frames",
    type=click.IntRange(1),
    help="Frames in a clip. [default: the checkpoint's, else 16]",
)
@click.option(
    "--stride",
    type=click.IntRange(0),
    help="Frames from one to the next; 0 spreads them over the whole video. "
    "[default: the checkpoint's, else 0]",
)
@click.option(
    "--views",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Clips whose scores are averaged.",
)
@click.option(
    "--crops",
    type=click.Choice(["1", "3"]),
    default="1",
    show_default=True,
    help="Squares cut from each clip.",
)
@click.option(
    "--size",
    type=click.IntRange(8),
    help="Side of such a square, in pixels. [default: the checkpoint's, else 224]",
)
@click.option(
    "--temporal-strides",
    type=click.Choice(["tubelet", "full", "original"]),
    help="[default: the checkpoint's, else tubelet]",
)
@click.option("--topk", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Threads of the video decoder.",
)
@model_options
@json_option
@debug_option
def classify(
    video: str,
    name: str | None,
    checkpoint: str | None,
    labels: str | None,
    frames: int | None,
    stride: int | None,
    views: int,
    crops: str,
    size: int | None,
    temporal_strides: str | None,
    topk: int,
    threads: int,
    backend: str | None,
    device_name: str,
    as_json: bool,
) -> None:
    """Classify one video file.

    Weights that `evit train` made know which clips they were trained on and what their classes are
    called; options that are given win over them.
    """
    from evit_models.cli.common import check_backend, parse_device, read_labels
    from evit_models.cli.predict import plan_clips, predict
    from evit_models.cli.ui import print_json
    from evit_models.cli.weights import choose_model
    from evit_models.video import VideoReader

    device = parse_device(device_name)
    check_backend(backend, device)
    names = read_labels(labels) if labels else None
    with VideoReader(video, threads=threads) as reader:
        chosen = choose_model(
            name,
            checkpoint,
            classes=len(names) if names else None,
            temporal_strides=temporal_strides,
            backend=backend,
        )
        model = chosen.model.to(device)
        plan = plan_clips(model, frames=frames, stride=stride, size=size, names=names)
        if chosen.doubt:
            click.echo(f"Note: {chosen.doubt}.", err=as_json)
        if plan.from_checkpoint:
            click.echo(f"From the checkpoint: {', '.join(plan.from_checkpoint)}.", err=as_json)
        start = time.perf_counter()
        predictions = predict(
            reader, model, plan, views=views, crops=int(crops), topk=topk, quiet=as_json
        )
        seconds = time.perf_counter() - start
        info = reader.info

    facts = {
        "video": info.to_dict(),
        "model": model.name,
        "weights": chosen.origin,
        "note": chosen.doubt,
        "from_checkpoint": list(plan.from_checkpoint),
        "frames": plan.frames,
        "stride": plan.stride,
        "views": views,
        "crops": int(crops),
        "size": plan.size,
        "backend": backend or "automatic",
        "device": str(device),
        "seconds": seconds,
        "predictions": predictions,
    }
    if as_json:
        print_json(facts)
    else:
        _print(info, facts, predictions)


def _print(info: VideoInfo, facts: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    from evit_models.cli.predict import spread

    turned = ", turned upright" if info.turned else ""
    sound = "with sound" if info.has_audio else "without sound"
    click.echo(
        f"{info.path}: {info.codec} {info.width} x {info.height}{turned}, {info.duration:.2f} s "
        f"at {info.fps:.2f} frames/s, {sound}"
    )
    click.echo(
        f"{facts['model']}, {facts['views']} x {facts['crops']} clips of {facts['frames']} frames "
        f"{spread(facts['stride'])}, {facts['size']} x {facts['size']} pixels: "
        f"{facts['seconds']:.2f} s"
    )
    for head, rows in groupby(predictions, key=lambda row: row["head"]):
        _print_head(head, list(rows))


def _print_head(head: str | None, rows: list[dict[str, Any]]) -> None:
    from evit_models.cli.ui import print_table

    print_table(
        ("", head or "class", "probability"),
        [
            (
                str(rank),
                row["label"] or f"class {row['class']}",
                f"{100 * row['probability']:.2f} %",
            )
            for rank, row in enumerate(rows, start=1)
        ],
        numbers=(0, 2),
    )
