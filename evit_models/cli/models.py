"""`evit models`: every model with its size and its cost."""

from __future__ import annotations

from typing import Any

import click

from evit_models.cli.common import debug_option, json_option


@click.command()
@click.argument("pattern", default="")
@click.option("--frames", type=click.IntRange(1), default=16, show_default=True)
@click.option("--size", type=click.IntRange(1), default=224, show_default=True)
@click.option(
    "--temporal-strides",
    default="tubelet",
    show_default=True,
    type=click.Choice(["tubelet", "full", "original"]),
)
@json_option
@debug_option
def models(pattern: str, frames: int, size: int, temporal_strides: str, as_json: bool) -> None:
    """List the models whose name contains PATTERN, all of them without one.

    A multiply-add counts as two operations (FLOPs). Counted are convolutions, linear layers and the
    matrix products of the attention; not counted are norms, activations and sums.
    """
    import torch

    from evit_models import create_model, list_models
    from evit_models.cli.common import UserError
    from evit_models.cli.flops import count_flops
    from evit_models.cli.ui import print_json, print_table

    names = list_models(pattern)
    if not names:
        raise UserError(f"no model's name contains {pattern!r}; known: {', '.join(list_models())}")
    rows: list[dict[str, Any]] = []
    for name in names:
        with torch.device("meta"):
            model = create_model(name, temporal_strides=temporal_strides, backend="reference")
        rows.append(
            {
                "name": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "flops": count_flops(model.eval(), (1, 3, frames, size, size)),
                "temporal_strides": list(model.temporal_strides),
                "spatial_strides": [2] * len(model.temporal_strides),
            }
        )
    if as_json:
        print_json(
            {"input": [1, 3, frames, size, size], "flops_per_multiply_add": 2, "models": rows}
        )
        return
    print_table(
        (
            "model",
            "parameters (M)",
            f"GFLOPs at {frames}x{size}x{size}",
            "strides in time",
            "space",
        ),
        [
            (
                row["name"],
                f"{row['parameters'] / 1e6:.2f}",
                f"{row['flops'] / 1e9:.2f}",
                ",".join(map(str, row["temporal_strides"])),
                ",".join(map(str, row["spatial_strides"])),
            )
            for row in rows
        ],
        numbers=(1, 2),
    )
    click.echo(
        "Parameters with a head of 400 classes. FLOPs: 2 per multiply-add of convolutions, "
        "linear layers and attention."
    )
