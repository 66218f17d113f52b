"""`evit demo`: the fused kernels at work, then a network that learns to see the order of time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from evit_models.cli.common import DEFAULT_MODEL, UserError, debug_option, json_option

_PARTS = ("kernels", "training")


@click.command()
@click.option("--part", type=click.Choice(_PARTS), help="Only this part. [default: both]")
@click.option(
    "--output",
    type=click.Path(),
    help="Folder that keeps videos, weights and curves. [default: a new temporary one]",
)
@click.option(
    "--model",
    "name",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME",
    help="Of the part kernels, as the next three.",
)
@click.option("--frames", type=click.IntRange(1), default=16, show_default=True)
@click.option("--size", type=click.IntRange(8), default=224, show_default=True)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=9,
    show_default=True,
    help="Timed rounds; both run once in each.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    help="Of the part training. [default: those of the preset motion]",
)
@json_option
@debug_option
def demo(
    part: str | None,
    output: str | None,
    name: str,
    frames: int,
    size: int,
    rounds: int,
    epochs: int | None,
    as_json: bool,
) -> None:
    """Run the fused kernels beside PyTorch's operators, then train a network and try it.

    kernels: a short video is written and read back, and one network is run on it in both ways.

    training: efficientvit3d_b0 learns motion, in about a minute and a half on two quiet cores. Five
    pairs of classes show the same frames in another order, so only time can tell them apart. The
    trained weights then classify video files of scenes that they never saw.
    """
    from evit_models.cli.common import check_model_name
    from evit_models.cli.demo_kernels import check_kernels, compare_kernels, print_kernels
    from evit_models.cli.demo_training import print_training, train_and_classify
    from evit_models.cli.ui import print_json

    check_model_name(name)
    folder = _folder(output)
    facts: dict[str, Any] = {"folder": str(folder)}
    if part != "training":
        facts["kernels"] = compare_kernels(
            folder / "shapes.mp4", name, frames, size, rounds, quiet=as_json
        )
        if not as_json:
            print_kernels(facts["kernels"])
        check_kernels(facts["kernels"])
    if part != "kernels":
        if not as_json and part is None:
            click.echo()
        facts["training"] = train_and_classify(
            folder, epochs, keep_checkpoints=output is not None, quiet=as_json
        )
        if not as_json:
            print_training(facts["training"])
    if as_json:
        print_json(facts)
    else:
        click.echo(f"\nEverything is in {folder}.")


def _folder(output: str | None) -> Path:
    if output is None:
        return Path(tempfile.mkdtemp(prefix="evit-demo-"))
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {output}: {error.strerror}") from error
    return folder
