"""First part of `evit demo`: from a video file to logits, by PyTorch and by the fused kernels."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from evit_models import EfficientViT3D

# Relative difference of float32 logits above which something is wrong; rounding stays near 1e-4.
_AGREEMENT = 1e-2
_FPS, _SECONDS, _WIDTH, _HEIGHT = 25, 3, 320, 240


def compare_kernels(
    path: Path, name: str, frames: int, size: int, rounds: int, *, quiet: bool
) -> dict[str, Any]:
    """Write a short video, read it back, and compare two ways of running one network on it.

    Both ways have the same random weights, norms folded into convolutions, and tensors in
    channels-last layout. They differ in the operators alone: PyTorch's own (backend "reference") or
    the fused ones that this machine offers (automatic choice).
    """
    import torch

    from evit_kernels import available_backends
    from evit_models import set_backend
    from evit_models.cli.clips import clips, transform_for
    from evit_models.cli.common import random_model
    from evit_models.cli.timing import paired_rounds
    from evit_models.cli.ui import progress
    from evit_models.video import VideoReader, write_video

    try:
        written = write_video(path, _shapes(), _FPS)
    except (OSError, ValueError) as error:
        raise UserError(f"--output: {error}") from error
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

    # Two networks with the same weights: the same work is timed that a user's call would do.
    set_backend(model, "reference")
    networks = {"reference": model, "automatic": copy.deepcopy(model)}
    set_backend(networks["automatic"], None)

    def run(which: str) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = networks[which](clip)
        return logits

    plain, fused = run("reference").double(), run("automatic").double()
    # PyTorch's convolutions in float64 take far longer than all the rest. A wrong kernel would show
    # here just as well, as a large distance of PyTorch's float32 from it.
    with torch.inference_mode():
        exact: torch.Tensor = copy.deepcopy(networks["automatic"]).double()(clip.double())
    largest = exact.abs().max().item()

    def apart(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
        difference = (one - other).abs().max().item()
        return {"absolute": difference, "relative": difference / largest}

    with progress("round", rounds, quiet=quiet) as advance:
        timings = paired_rounds(
            {which: functools.partial(run, which) for which in networks},
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
        "largest_logit": largest,
        "difference": apart(fused, plain),
        "reference_from_float64": apart(plain, exact),
        "automatic_from_float64": apart(fused, exact),
        "same_class": bool((fused.argmax(-1) == plain.argmax(-1)).all()),
        "rounds": rounds,
        "median_seconds": {key: timing.median for key, timing in timings.items()},
        "seconds": {key: list(timing.seconds) for key, timing in timings.items()},
        "times_faster": timings["reference"].slower_than(timings["automatic"]),
    }


def print_kernels(facts: dict[str, Any]) -> None:
    """Tell what `compare_kernels` found."""
    from evit_models.cli.ui import print_bars

    backend = facts["automatic_backend"]
    click.echo(f"\n{facts['model']}, random weights, float32, {facts['threads']} threads.")
    if facts["why_not_native"]:
        click.echo(f"No fused kernels here, both ways are the same: {facts['why_not_native']}")
    difference = facts["difference"]
    click.echo(
        f"Largest difference of the logits: {difference['absolute']:.1e}, that is "
        f"{difference['relative']:.1e} of the largest logit ({facts['largest_logit']:.2f}); "
        f"{'the same' if facts['same_class'] else 'NOT the same'} class is first."
    )
    click.echo(
        f"Largest distance from the {backend} kernels in float64: PyTorch operators "
        f"{facts['reference_from_float64']['absolute']:.1e}, {backend} kernels "
        f"{facts['automatic_from_float64']['absolute']:.1e}."
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


def check_kernels(facts: dict[str, Any]) -> None:
    """Raise where the two ways do not agree."""
    if not facts["difference"]["relative"] < _AGREEMENT:
        raise click.ClickException(
            "the fused kernels do not compute what PyTorch computes; please report it with the "
            "output of `evit info`"
        )


def _why_not_native() -> str | None:
    import torch

    from evit_kernels.backends import native_refusal

    return native_refusal("depthwise_conv3d", torch.device("cpu"), torch.float32)


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
