"""`evit demo`: from a video file to logits, by PyTorch and by the fused kernels, side by side."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import DEFAULT_MODEL, debug_option, json_option

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from evit_models import EfficientViT3D

_FPS, _SECONDS, _WIDTH, _HEIGHT = 25, 3, 320, 240


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    help="Where to keep the video. [default: a temporary folder, removed]",
)
@click.option("--model", "name", default=DEFAULT_MODEL, show_default=True, metavar="NAME")
@click.option("--frames", type=click.IntRange(1), default=16, show_default=True)
@click.option("--size", type=click.IntRange(8), default=224, show_default=True)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=9,
    show_default=True,
    help="Timed rounds; both run once in each.",
)
@json_option
@debug_option
def demo(output: str | None, name: str, frames: int, size: int, rounds: int, as_json: bool) -> None:
    """Write a short video, read it back, and compare two ways of running one network on it.

    Both ways have the same random weights and the same input in channels-last layout. They differ
    in the operators alone: plain PyTorch (backend "reference") or this machine's best (automatic).
    """
    from evit_models.cli.common import check_model_name
    from evit_models.cli.ui import print_json

    check_model_name(name)
    with tempfile.TemporaryDirectory(prefix="evit-demo-") as folder:
        path = Path(output) if output else Path(folder) / "shapes.mp4"
        facts = _compare(path, name, frames, size, rounds, quiet=as_json)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def _compare(
    path: Path, name: str, frames: int, size: int, rounds: int, *, quiet: bool
) -> dict[str, Any]:
    import torch

    from evit_kernels import available_backends
    from evit_models import set_backend
    from evit_models.cli.clips import clips, transform_for
    from evit_models.cli.common import random_model
    from evit_models.cli.timing import paired_rounds
    from evit_models.cli.ui import progress
    from evit_models.video import VideoReader, write_video

    written = write_video(path, _shapes(), _FPS)
    if not quiet:
        click.echo(f"Wrote {path.name}: {written} frames of {_WIDTH} x {_HEIGHT}, {_FPS} a second.")
    model = random_model(name)
    with VideoReader(path) as reader:
        (clip,) = clips(reader, transform_for(model, size=size), frames=frames)
        info = reader.info
    if not quiet:
        click.echo(
            f"Read it back: {info.codec} in {info.container.split(',')[0]}, {frames} frames "
            f"spread over {info.duration:.1f} s, as a clip of {tuple(clip.shape)}."
        )
    _awaken(model, clip)

    def run(backend: str | None) -> torch.Tensor:
        set_backend(model, backend)
        with torch.inference_mode():
            logits: torch.Tensor = model(clip)
        return logits

    reference, fused = run("reference"), run(None)
    largest = (fused - reference).abs().max().item()
    with progress("round", rounds, quiet=quiet) as advance:
        timings = paired_rounds(
            {"reference": lambda: run("reference"), "automatic": lambda: run(None)},
            rounds,
            torch.device("cpu"),
            after_round=advance,
        )
    return {
        "video": info.to_dict(),
        "model": name,
        "input": list(clip.shape),
        "threads": torch.get_num_threads(),
        "automatic_backend": available_backends()[0],
        "why_not_native": _why_not_native(),
        "largest_difference": largest,
        "largest_logit": reference.abs().max().item(),
        "relative_difference": largest / reference.abs().max().item(),
        "same_class": bool((fused.argmax(-1) == reference.argmax(-1)).all()),
        "rounds": rounds,
        "median_seconds": {key: timing.median for key, timing in timings.items()},
        "seconds": {key: list(timing.seconds) for key, timing in timings.items()},
        "times_faster": timings["reference"].slower_than(timings["automatic"]),
    }


def _print(facts: dict[str, Any]) -> None:
    from evit_models.cli.ui import print_bars

    backend = facts["automatic_backend"]
    click.echo(f"\n{facts['model']}, random weights, float32, {facts['threads']} threads.")
    if facts["why_not_native"]:
        click.echo(f"No fused kernels here, both ways are the same: {facts['why_not_native']}")
    click.echo(
        f"Largest difference of the logits: {facts['largest_difference']:.2e} "
        f"({facts['relative_difference']:.1e} of the largest logit, {facts['largest_logit']:.2f}); "
        f"{'same' if facts['same_class'] else 'NOT the same'} class first."
    )
    medians = facts["median_seconds"]
    click.echo(f"\nOne clip, median of {facts['rounds']} paired rounds, shorter is faster:")
    print_bars(
        [
            ("PyTorch operators", medians["reference"], f"{1e3 * medians['reference']:.1f} ms"),
            (f"{backend} kernels", medians["automatic"], f"{1e3 * medians['automatic']:.1f} ms"),
        ]
    )
    click.echo(f"{facts['times_faster']:.2f} times as fast.")


def _why_not_native() -> str | None:
    import torch

    from evit_kernels.backends import native_refusal

    return native_refusal(torch.device("cpu"), torch.float32)


def _awaken(model: EfficientViT3D, clip: torch.Tensor) -> None:
    """Let every layer take part, as in a trained network.

    Fresh residual branches are multiplied by 0 and fresh norms have never seen data, so that a
    comparison would not notice what the blocks compute. Norms get weights around 1, and the
    statistics of this clip by one pass in training mode, in plain PyTorch.
    """
    import torch

    from evit_models import set_backend

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.momentum = 1.0
        set_backend(model, "reference")
        model.train()(clip)
        model.eval()


def _shapes() -> list[NDArray[np.uint8]]:
    """A square, a disc and a bar that move over a gradient, each (H, W, 3)."""
    import numpy as np

    rows, columns = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    backdrop = np.stack([rows * 90 // _HEIGHT, columns * 90 // _WIDTH, 60 + 0 * rows], axis=-1)
    frames = []
    for number in range(_FPS * _SECONDS):
        phase = 2 * np.pi * number / (_FPS * _SECONDS)
        frame = backdrop.astype(np.uint8)
        x, y = (
            int(_WIDTH * (0.5 + 0.35 * np.cos(phase))),
            int(_HEIGHT * (0.5 + 0.3 * np.sin(phase))),
        )
        frame[(rows - y) ** 2 + (columns - x) ** 2 < 28**2] = (250, 120, 30)
        left = 4 * number % (_WIDTH + 60) - 60
        frame[40:90, max(0, left) : max(0, left + 60)] = (40, 200, 120)
        tilt = (columns - _WIDTH / 2) * np.sin(2 * phase) + (rows - _HEIGHT / 2) * np.cos(2 * phase)
        frame[np.abs(tilt) < 5] = (220, 220, 240)
        frames.append(frame)
    return frames
