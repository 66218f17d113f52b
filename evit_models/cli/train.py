"""`evit train`: from videos with labels to weights that `evit classify` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import check_model_name, debug_option, json_option

if TYPE_CHECKING:
    from evit_models.training import TrainConfig

# Options that are keys of the configuration; --set reaches all the others.
_OPTIONS: tuple[tuple[str, type, str], ...] = (
    ("--data", str, "List of `path label` lines, folder of a folder per class, or EPIC CSV."),
    ("--eval-data", str, "The same for evaluation."),
    ("--model", str, "See `evit models`."),
    ("--pretrained", str, "Weights to start from, of images or clips."),
    ("--epochs", int, "Passes over the training data."),
    ("--batch-size", int, "Clips in a batch, per process."),
    ("--lr", float, "Peak learning rate."),
    ("--frames", int, "Frames in a clip."),
    ("--stride", int, "Frames from one to the next; 0 spreads them over the video."),
    ("--size", int, "Side of the frames, in pixels."),
    ("--workers", int, "Processes that read clips."),
    ("--freeze", str, "none, backbone, spatial or norm."),
    ("--precision", str, "fp32, bf16 or fp16."),
    ("--seed", int, "Of everything random."),
)


def _config_options(command: Any) -> Any:
    for flag, kind, help_text in reversed(_OPTIONS):
        command = click.option(flag, type=kind, help=help_text)(command)
    return command


@click.command()
@_config_options
@click.option("--preset", metavar="NAME", help="ek100, kinetics or motion: where to start from.")
@click.option("--config", "file", type=click.Path(), help="A TOML file with any of the keys.")
@click.option(
    "--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Any key; may be given repeatedly."
)
@click.option("--output", type=click.Path(), help="Folder of the run. [default: runs/MODEL-DATA]")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu or cuda.")
@json_option
@debug_option
def train(
    preset: str | None,
    file: str | None,
    pairs: tuple[str, ...],
    output: str | None,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on labelled videos.

    The run lives in its output folder: configuration, checkpoints, log, curves and weights. The
    same command, given again after a crash, goes on where the last checkpoint stands and ends with
    the same weights. Several processes: `torchrun --nproc-per-node 2 -m evit_models.cli train ...`,
    with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --max-restarts to survive killed ones.

    Every key of the configuration is explained in `evit_models.training.TrainConfig`.
    """
    from evit_models.cli.common import parse_device
    from evit_models.cli.ui import print_json
    from evit_models.training import load_config, ranks
    from evit_models.training.config import parse_overrides

    parse_device(device)
    overrides = {key: value for key, value in options.items() if value is not None}
    overrides.update(parse_overrides(pairs))
    config = load_config(file, preset=preset, overrides=with_dataset(overrides))
    check_model_name(config.model)
    folder = Path(output) if output else _default_folder(config)
    with ranks(device, config.collective_timeout) as group:
        result = run_training(config, folder, group, quiet=as_json)
    if not group.first:
        return
    if as_json:
        print_json({"run": str(folder), **result})
    else:
        click.echo(f"Weights: {folder / 'model.safetensors'}. Curves: {folder / 'curves.png'}.")


def run_training(config: TrainConfig, folder: Path, group: Any, *, quiet: bool) -> dict[str, Any]:
    """Train by a configuration in this process, with a bar, and return the last evaluation."""
    from evit_models.cli.progress import TrainingDisplay
    from evit_models.training import Trainer
    from evit_models.training.datasets import make_datasets, make_mix
    from evit_models.training.distributed import restart_warning

    train_set, eval_set = make_datasets(config)
    with TrainingDisplay(quiet=quiet or not group.first) as display:
        if warning := restart_warning():
            display("warning", {"text": warning})
        trainer = Trainer(
            config,
            folder,
            train_set,
            eval_set,
            ranks=group,
            mix=make_mix(config, train_set),
            observe=display,
        )
        return trainer.run()


def with_dataset(overrides: dict[str, Any]) -> dict[str, Any]:
    """Adds what kind of dataset `data` is, where the user did not say."""
    data = overrides.get("data")
    if data is None or "dataset" in overrides:
        return overrides
    path = Path(str(data))
    kind = "folder" if path.is_dir() else "epic" if path.suffix == ".csv" else "list"
    return {**overrides, "dataset": kind}


def _default_folder(config: TrainConfig) -> Path:
    return Path("runs") / f"{config.model}-{Path(config.data).stem or config.dataset}"
