"""`evit classify VIDEO`: what a model sees in a video."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import UserError, debug_option, json_option, model_options

if TYPE_CHECKING:
    import torch

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
@click.option("--labels", type=click.Path(), help="Names of the classes: one a line, or JSON.")
@click.option(
    "--frames", type=click.IntRange(1), default=16, show_default=True, help="Frames in a clip."
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="Frames from one to the next. [default: spread over the whole video]",
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
    default=224,
    show_default=True,
    help="Side of such a square, in pixels.",
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
    frames: int,
    stride: int | None,
    views: int,
    crops: str,
    size: int,
    temporal_strides: str | None,
    topk: int,
    threads: int,
    backend: str | None,
    device_name: str,
    as_json: bool,
) -> None:
    """Classify one video file."""
    from evit_models.cli.clips import clips, transform_for
    from evit_models.cli.common import check_backend, parse_device, read_labels
    from evit_models.cli.ui import print_json, progress
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
        if names and len(names) != model.num_classes:
            raise UserError(
                f"--labels: {labels} names {len(names)} classes, the model has {model.num_classes}"
            )
        if chosen.doubt:
            click.echo(f"Note: {chosen.doubt}.", err=as_json)

        transform = transform_for(model, size=size, crops=int(crops))
        start = time.perf_counter()
        with progress("view", views, quiet=as_json or views == 1) as advance:
            probabilities = None
            for clip in clips(reader, transform, frames=frames, stride=stride, views=views):
                scores = _probabilities(model, clip.to(device))
                probabilities = scores if probabilities is None else probabilities + scores
                advance()
        seconds = time.perf_counter() - start
        info = reader.info

    assert probabilities is not None
    best = (probabilities / views).topk(min(topk, model.num_classes))
    predictions = [
        {
            "class": index,
            "label": names[index] if names else None,
            "probability": probability,
        }
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    facts = {
        "video": info.to_dict(),
        "model": model.name,
        "weights": chosen.origin,
        "note": chosen.doubt,
        "frames": frames,
        "stride": stride,
        "views": views,
        "crops": int(crops),
        "size": size,
        "backend": backend or "automatic",
        "device": str(device),
        "seconds": seconds,
        "predictions": predictions,
    }
    if as_json:
        print_json(facts)
    else:
        _print(info, facts, predictions)


def _probabilities(model: torch.nn.Module, clip: torch.Tensor) -> torch.Tensor:
    """Mean over the crops of one view, (classes,), in float64 on the CPU."""
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(clip)
        return logits.double().softmax(dim=-1).mean(dim=0).cpu()


def _print(info: VideoInfo, facts: dict[str, Any], predictions: list[dict[str, Any]]) -> None:
    from evit_models.cli.ui import print_table

    turned = ", turned upright" if info.turned else ""
    sound = "with sound" if info.has_audio else "without sound"
    click.echo(
        f"{info.path}: {info.codec} {info.width} x {info.height}{turned}, {info.duration:.2f} s "
        f"at {info.fps:.2f} frames/s, {sound}"
    )
    spread = f"{facts['stride']} apart" if facts["stride"] else "spread over the video"
    click.echo(
        f"{facts['model']}, {facts['views']} x {facts['crops']} clips of {facts['frames']} frames "
        f"{spread}, {facts['size']} x {facts['size']} pixels: {facts['seconds']:.2f} s"
    )
    print_table(
        ("", "class", "probability"),
        [
            (
                str(rank),
                row["label"] or f"class {row['class']}",
                f"{100 * row['probability']:.2f} %",
            )
            for rank, row in enumerate(predictions, start=1)
        ],
        numbers=(0, 2),
    )
