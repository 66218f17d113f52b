"""`evit prepare`: decode a dataset once, so that training does not wait for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import UserError, debug_option, json_option, read_labels

if TYPE_CHECKING:
    from evit_models.video.preparing import Preparation

_MEASURED = 8  # videos whose loading is timed, spread over the list


@click.command()
@click.argument("data", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--short-side", type=click.IntRange(16), default=256, show_default=True)
@click.option("--clip-frames", type=click.IntRange(1), help="Store so many frames as an array.")
@click.option("--crf", type=click.IntRange(0, 51), default=20, show_default=True)
@click.option("--root", type=click.Path(), help="Folder of a list's or of EPIC's videos.")
@click.option("--classes", type=click.Path(), help="Names of a folder's classes, a name a line.")
@click.option("--processes", type=click.IntRange(1), help="[default: one per core]")
@json_option
@debug_option
def prepare(
    data: str,
    output: str,
    short_side: int,
    clip_frames: int | None,
    crf: int,
    root: str | None,
    classes: str | None,
    processes: int | None,
    as_json: bool,
) -> int:
    """Make small copies of the videos of DATA in the folder OUTPUT, and a list of them.

    DATA is a list of `path label` lines, a folder with a folder for every class, or a table of
    EPIC-Kitchens (.csv), every action of which gets a file; --root of the table is then OUTPUT.
    Videos are re-encoded at a short side of that many pixels with keyframes close together, or with
    --clip-frames stored as arrays. A list's paths are below --root, else its own folder. A folder's
    classes are numbered by name, or as --classes says: give the .classes.txt of the training data
    for all other data.

    The same command goes on after an interruption. Videos that cannot be read are left out of the
    list and named in a report; the exit code is 1 then.
    """
    from evit_models.cli.ui import print_json
    from evit_models.video.preparing import PrepareError, Recipe, loading_speed

    source = Path(data)
    recipe = Recipe(short_side, clip_frames, crf)
    if root is not None and source.is_dir():
        raise UserError("--root: is for lists and tables; DATA is a folder")
    if classes is not None and not source.is_dir():
        raise UserError("--classes: is for folders; DATA is a list or table")
    name = source.resolve().name if source.is_dir() else source.stem
    for written in (f"{name}.txt", source.name):
        if source.is_file() and (Path(output) / written).resolve() == source.resolve():
            raise UserError("OUTPUT: is the folder of DATA, where the new list would replace it")
    options = {"recipe": recipe, "processes": processes}
    try:
        if source.suffix == ".csv":
            done = _table(source, root, output, options, quiet=as_json)
        else:
            done = _videos(source, root, classes, output, name, options, quiet=as_json)
    except PrepareError as error:
        raise click.ClickException(str(error)) from error
    measured = done.pairs[:: max(1, len(done.pairs) // _MEASURED)][:_MEASURED]
    before, after = (
        loading_speed([pair[side] for pair in measured], short_side=short_side) for side in (0, 1)
    )
    if as_json:
        print_json(
            {
                "list": str(done.list_file),
                "made": done.made,
                "kept": done.kept,
                "bad": [{"path": path, "reason": reason} for path, reason in done.bad],
                "damaged": [{"path": path, "reason": reason} for path, reason in done.damaged],
                "report": None if done.report is None else str(done.report),
                "clips_per_second_before": before,
                "clips_per_second_after": after,
            }
        )
        return 1 if done.bad else 0
    click.echo(f"{done.made} videos made, {done.kept} found done. List: {done.list_file}")
    click.echo(
        f"Reading 16 frames of a video at this size: {before:.1f} clips/s before, {after:.1f} now "
        f"({after / before:.1f}x), in one process, over {len(measured)} videos."
    )
    if done.report is not None:
        click.echo(
            f"evit: warning: {len(done.bad)} videos could not be read, {len(done.damaged)} are "
            f"damaged: {done.report}",
            err=True,
        )
    return 1 if done.bad else 0


def _table(
    table: Path, root: str | None, output: str, options: dict[str, Any], *, quiet: bool
) -> Preparation:
    from evit_models.cli.ui import progress
    from evit_models.video.datasets import EpicKitchens
    from evit_models.video.preparing import prepare_table

    if root is None:
        raise UserError("--root: is missing; give the folder of the videos of EPIC-Kitchens")
    dataset = EpicKitchens(table, root, targets=("verb", "noun"), training=False)
    segments = {row.narration_id: dataset.segment(n) for n, row in enumerate(dataset.rows)}
    with progress("Preparing", len(set(segments.values())), quiet=quiet) as advance:
        return prepare_table(
            table,
            segments,
            output,
            advance=lambda name: advance(os.path.basename(name)),
            **options,
        )


def _videos(
    source: Path,
    root: str | None,
    classes: str | None,
    output: str,
    name: str,
    options: dict[str, Any],
    *,
    quiet: bool,
) -> Preparation:
    from evit_models.cli.ui import progress
    from evit_models.video.datasets import VideoFolder, VideoList
    from evit_models.video.preparing import prepare_videos

    if source.is_dir():
        names = None if classes is None else read_labels(classes, "--classes")
        dataset: VideoFolder | VideoList = VideoFolder(source, class_names=names, training=False)
    else:
        dataset = VideoList(source, root, training=False)
    paths = [dataset.segment(index).path for index in range(len(dataset))]
    with progress("Preparing", len(set(paths)), quiet=quiet) as advance:
        done = prepare_videos(
            paths,
            dataset.labels,
            output,
            name=name,
            advance=lambda path: advance(os.path.basename(path)),
            **options,
        )
    if dataset.class_names is not None:
        text = "".join(f"{label}\n" for label in dataset.class_names)
        (Path(output) / f"{name}.classes.txt").write_text(text, encoding="utf-8")
    return done
