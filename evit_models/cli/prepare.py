"""`evit prepare`: decode a dataset once, so that training does not wait for it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from evit_models.cli.common import UserError, debug_option, json_option, read_labels

_MEASURED = 8  # videos whose loading is timed, spread over the list


@click.command()
@click.argument("data", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--short-side", type=click.IntRange(16), default=256, show_default=True)
@click.option("--clip-frames", type=click.IntRange(1), help="Store so many frames as an array.")
@click.option("--crf", type=click.IntRange(0, 51), default=20, show_default=True)
@click.option("--root", type=click.Path(), help="Folder of a list's paths. [default: the list's]")
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

    DATA is a list of `path label` lines, or a folder with a folder for every class. Videos are
    re-encoded at a short side of that many pixels with keyframes close together, or with
    --clip-frames stored as arrays. A folder's classes are numbered by name, or as --classes says:
    give the .classes.txt of the training data for all other data.

    The same command goes on after an interruption. Videos that cannot be read are left out of the
    list and named in a report; the exit code is 1 then.
    """
    from evit_models.cli.ui import print_json, progress
    from evit_models.video.datasets import VideoFolder, VideoList
    from evit_models.video.preparing import PrepareError, Recipe, loading_speed, prepare_videos

    source = Path(data)
    if source.is_dir():
        if root is not None:
            raise UserError("--root: is for lists; DATA is a folder")
        names = None if classes is None else read_labels(classes, "--classes")
        dataset: VideoFolder | VideoList = VideoFolder(source, class_names=names, training=False)
    else:
        if classes is not None:
            raise UserError("--classes: is for folders; DATA is a list")
        dataset = VideoList(source, root, training=False)
    paths = [dataset.segment(index).path for index in range(len(dataset))]
    recipe = Recipe(short_side, clip_frames, crf)
    name = source.resolve().name if source.is_dir() else source.stem
    if not source.is_dir() and (Path(output) / f"{name}.txt").resolve() == source.resolve():
        raise UserError("OUTPUT: is the list's own folder, where the new list would replace it")
    try:
        with progress("Preparing", len(set(paths)), quiet=as_json) as advance:
            done = prepare_videos(
                paths,
                dataset.labels,
                output,
                name=name,
                recipe=recipe,
                processes=processes,
                advance=lambda path: advance(os.path.basename(path)),
            )
    except PrepareError as error:
        raise click.ClickException(str(error)) from error
    if dataset.class_names is not None:
        text = "".join(f"{label}\n" for label in dataset.class_names)
        (Path(output) / f"{name}.classes.txt").write_text(text, encoding="utf-8")
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
