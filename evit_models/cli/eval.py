"""`evit eval`: how good weights are, beside what naming the commonest class would get."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import UserError, debug_option, json_option, model_options

if TYPE_CHECKING:
    from evit_models.cli.subject import Clips, Subject
    from evit_models.training import Evaluation

_SHOWN = 5  # unreadable videos, and mistakes, that are named


@click.command("eval", short_help="Evaluate weights on labelled videos.")
@click.argument("run", type=click.Path(), required=False)
@click.option("--best", is_flag=True, help="The run's weights of its best evaluation.")
@click.option("--checkpoint", type=click.Path(), help="Weights, in place of a run's.")
@click.option("--model", "name", metavar="NAME", help="[default: the checkpoint's]")
@click.option("--data", type=click.Path(), help="Labelled videos, as for `evit train`.")
@click.option("--dataset", metavar="KIND", help="list, folder, epic or motion. [default: by DATA]")
@click.option("--root", type=click.Path(), help="Folder of a list's or EPIC's videos.")
@click.option("--labels", type=click.Path(), help="Names of the classes: one a line, or JSON.")
@click.option(
    "--actions", multiple=True, type=click.Path(), help="EPIC tables that number the actions."
)
@click.option("--views", type=click.IntRange(1), help="Clips of a video whose scores are averaged.")
@click.option("--crops", type=click.Choice(["1", "3"]), help="Squares cut from each clip.")
@click.option("--frames", type=click.IntRange(1), help="Frames in a clip.")
@click.option("--stride", type=click.IntRange(0), help="Frames from one to the next; 0 spreads.")
@click.option("--size", type=click.IntRange(8), help="Side of the frames, in pixels.")
@click.option("--batch-size", type=click.IntRange(1), help="Videos in a batch.")
@click.option("--workers", type=click.IntRange(0), help="Processes that read videos.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]))
@click.option("--output", type=click.Path(), help="Folder of the files. [default: RUN/evaluation]")
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True,
    help="Of the file of predictions.",
)  # fmt: skip
@model_options
@json_option
@debug_option
def evaluate_command(
    run: str | None,
    best: bool,
    checkpoint: str | None,
    name: str | None,
    data: str | None,
    dataset: str | None,
    root: str | None,
    labels: str | None,
    actions: tuple[str, ...],
    output: str | None,
    form: str,
    backend: str | None,
    device_name: str,
    as_json: bool,
    **clips: Any,
) -> None:
    """Evaluate the weights of the run in the folder RUN, or those of --checkpoint.

    Clips are what they were in training, unless an option says otherwise. Videos that cannot be
    read are counted and named, and nothing stands for them. Written are the figures, every
    prediction, and the confusion matrix as a table and as a picture.

    On EPIC-Kitchens verbs, nouns and actions are reported, whichever the weights have learned.
    Several processes: `torchrun --nproc-per-node 2 -m evit_models.cli eval ...`.
    """
    from evit_models.cli.common import check_backend, parse_device, read_labels
    from evit_models.cli.subject import (
        checkpoint_subject,
        data_overrides,
        evaluation_clips,
        run_subject,
    )
    from evit_models.cli.ui import print_json
    from evit_models.training import ranks
    from evit_models.training.results import write_results

    if (run is None) == (checkpoint is None):
        raise UserError("give the folder of a run, or --checkpoint with --data; one of them")
    if run is not None and name is not None:
        raise UserError("--model: is for --checkpoint; a run knows its model")
    if checkpoint is not None and best:
        raise UserError("--best: is for a run; --checkpoint names the weights")
    check_backend(backend, parse_device(device_name))
    names = read_labels(labels) if labels else None
    overrides = {**data_overrides(data, dataset, root), **_given(clips)}
    if run is not None:
        subject = run_subject(Path(run), overrides, best=best, backend=backend)
    else:
        assert checkpoint is not None
        count = len(names) if names else None
        subject = checkpoint_subject(
            checkpoint, overrides, name=name, classes=count, backend=backend
        )
    shown = evaluation_clips(subject, labels=names, tables=[Path(table) for table in actions])
    folder = Path(output) if output else subject.run / "evaluation" if subject.run else None
    with ranks(device_name, subject.config.collective_timeout) as group:
        if group.first:
            if subject.doubt:
                click.echo(f"Note: {subject.doubt}.", err=True)
            _claim(folder)
        found = _evaluate(subject, shown, group, quiet=as_json)
    if not group.first:
        return
    if not found.sources:
        raise UserError(
            f"none of the {len(found.unreadable)} videos could be read, such as "
            f"{next(iter(found.unreadable.values()))}"
        )
    facts = _facts(subject, found, shown)
    if folder is not None:
        written = write_results(folder, found, facts, shown.names, form=form, ids=shown.ids)
        facts["files"] = [str(path) for path in written]
    if as_json:
        print_json(facts)
    else:
        _print(facts, folder)


def _given(clips: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in clips.items() if value is not None}
    if "batch_size" in given:
        given["eval_batch_size"] = given.pop("batch_size")
    if "crops" in given:
        given["crops"] = int(given["crops"])
    return given


def _claim(folder: Path | None) -> None:
    """Fails before the work, where its result could not be written."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make {folder}: {error.strerror}") from error


def _evaluate(subject: Subject, shown: Clips, group: Any, *, quiet: bool) -> Evaluation:
    from evit_models.cli.ui import progress
    from evit_models.training import evaluate
    from evit_models.training.networks import attend_in_float32
    from evit_models.training.sampler import evaluation_shard

    config, model = subject.config, subject.model.to(group.device)
    if config.precision == "fp16":
        attend_in_float32(model)
    mine = len(evaluation_shard(len(shown.dataset), group.rank, group.world))
    batches = -(-mine // config.eval_batch_size)
    with progress("Evaluating", batches, quiet=quiet or not group.first) as advance:
        return evaluate(
            model,
            subject.heads,
            shown.dataset,
            config,
            group,
            scores=shown.scores,
            sizes=shown.sizes,
            after_batch=advance,
        )


def _facts(subject: Subject, found: Evaluation, shown: Clips) -> dict[str, Any]:
    from evit_models.training.metrics import confusion_matrix, figures, majority_figures
    from evit_models.training.results import most_confused

    config, heads = subject.config, {}
    for head, size in found.sizes.items():
        names, videos = shown.names[head], found.videos[head]
        majority = majority_figures(videos.label)
        commonest = int(majority["class"])
        matrix = confusion_matrix(videos, size)
        heads[head] = {
            "classes": size,
            "videos": figures(videos, size),
            "views": figures(found.views[head], size),
            "majority": {**majority, "name": names[commonest] if names else None},
            "confused": [
                {
                    "true": names[true] if names else true,
                    "predicted": names[said] if names else said,
                    "videos": count,
                    "of": int(matrix[true].sum()),
                }
                for true, said, count in most_confused(matrix, _SHOWN)
            ],
        }
    return {
        "weights": subject.weights,
        "note": subject.doubt,
        "model": subject.model.name,
        "data": config.eval_data or config.dataset,
        "dataset": config.dataset,
        "frames": config.frames,
        "stride": config.stride or None,
        "size": config.size,
        "views": config.views,
        "crops": config.crops,
        "precision": config.precision,
        "videos": len(shown.dataset),
        "evaluated": len(found.sources),
        "unreadable": list(found.unreadable.values()),
        "heads": heads,
    }


def _print(facts: dict[str, Any], folder: Path | None) -> None:
    from evit_models.cli.ui import print_table
    from evit_models.doctor.history import collapsed_predictions

    views = facts["views"] * facts["crops"]
    stride = f", every {facts['stride']}" if facts["stride"] else ""
    click.echo(f"{facts['model']}, {facts['weights']}")
    click.echo(
        f"{facts['data']}: {facts['evaluated']} of {facts['videos']} videos, "
        f"{views} view{'s' if views > 1 else ''} of {facts['frames']} frames{stride}, "
        f"{facts['size']} x {facts['size']}\n"
    )
    rows = []
    for head, row in facts["heads"].items():
        label = "" if len(facts["heads"]) == 1 else f"{head}, "
        rows.append((f"{label}per video", *_percent(row["videos"])))
        if views > 1:
            rows.append((f"{label}per view", *_percent(row["views"])))
        majority = row["majority"]
        called = majority["name"] or f"class {majority['class']}"
        rows.append((f"{label}always the commonest ({called})", *_percent(majority)))
    print_table(("", "top-1", "top-5", "mean of classes"), rows, numbers=(1, 2, 3))
    click.echo()
    for head, row in facts["heads"].items():
        if row["confused"]:
            label = "" if len(facts["heads"]) == 1 else f" ({head})"
            pairs = "; ".join(
                f"{one['true']} as {one['predicted']} {one['videos']} of {one['of']}"
                for one in row["confused"]
            )
            click.echo(f"Most often mistaken{label}: {pairs}.")
    if folder is not None:
        names = ", ".join(Path(path).name for path in facts["files"])
        click.echo(f"Written to {folder}: {names}.")
    found = collapsed_predictions(
        {head: row["videos"] for head, row in facts["heads"].items()}, "collapsed"
    )
    if found.verdict == "broken":
        click.echo(f"evit: warning: {found.evidence}; evit doctor looks for the cause", err=True)
    bad = facts["unreadable"]
    for text in bad[:_SHOWN]:
        click.echo(f"evit: warning: {text}", err=True)
    if bad:
        click.echo(
            f"evit: warning: {len(bad)} of {facts['videos']} videos could not be read; the figures "
            "are of the others",
            err=True,
        )


def _percent(row: dict[str, float]) -> tuple[str, ...]:
    return tuple(f"{100 * row[key]:.2f} %" for key in ("top1", "top5", "mean_class"))
