"""`evit doctor`: the classic failures, looked for in a run or in weights."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evit_models.cli.common import UserError, debug_option, json_option

if TYPE_CHECKING:
    from evit_models.doctor import Finding

_COLOURS = {"broken": "red", "warning": "yellow", "ok": "green", "unchecked": "bright_black"}


@click.command(short_help="Look for the classic failures in a run or in weights.")
@click.argument("target", type=click.Path(), metavar="CHECKPOINT|RUN")
@click.option("--data", type=click.Path(), help="Labelled videos to try the weights on.")
@click.option("--dataset", metavar="KIND", help="list, folder, epic or motion. [default: by DATA]")
@click.option("--root", type=click.Path(), help="Folder of a list's or EPIC's videos.")
@click.option("--predictions", type=click.Path(), help="What `evit eval` wrote of these weights.")
@click.option("--frames", type=click.IntRange(1), help="Frames in a clip.")
@click.option(
    "--clips",
    "samples",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Videos that are tried.",
)
@json_option
@debug_option
def doctor(
    target: str,
    data: str | None,
    dataset: str | None,
    root: str | None,
    predictions: str | None,
    frames: int | None,
    samples: int,
    as_json: bool,
) -> int:
    """Look for the classic failures in the folder of a run, or in a file of weights.

    Every check says what it saw and, where something is wrong, what to do. The exit code is 1 where
    something is broken, and 0 with warnings alone. A run is tried on its own videos where they are
    there; weights alone on those of --data.
    """
    from evit_models.checkpoints.reading import FOLDER_FILE
    from evit_models.cli.admission import admit
    from evit_models.cli.ui import print_json
    from evit_models.doctor import diagnose
    from evit_models.training.config import CONFIG_FILE

    if not Path(target).exists():
        raise UserError(f"{target}: no such file or folder")
    if Path(target).is_dir() and not any(
        (Path(target) / name).exists() for name in (CONFIG_FILE, FOLDER_FILE)
    ):
        raise UserError(f"{target}: has no weights and is no run")
    patient = admit(
        Path(target),
        data=data,
        dataset=dataset,
        root=root,
        predictions=predictions,
        frames=frames,
        samples=samples,
    )
    findings = diagnose(patient, samples=samples)
    broken = any(finding.verdict == "broken" for finding in findings)
    if as_json:
        print_json(
            {
                "target": target,
                "model": patient.structure.name,
                "healthy": not broken,
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        _print(target, patient.structure.name, findings)
    return 1 if broken else 0


def _print(target: str, model: str, findings: list[Finding]) -> None:
    from evit_models.doctor.finding import VERDICTS

    click.echo(f"{target}: {model}\n")
    for finding in sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict)):
        click.secho(f"{finding.verdict:<10}", fg=_COLOURS[finding.verdict], nl=False)
        click.echo(finding.name.replace("_", " "))
        for text in filter(None, (finding.evidence, finding.advice and f"Do: {finding.advice}.")):
            click.echo(textwrap.fill(text, 96, initial_indent=" " * 10, subsequent_indent=" " * 10))
    counts = {
        verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS
    }
    click.echo(
        f"\n{counts['broken']} broken, {counts['warning']} warnings, {counts['ok']} healthy, "
        f"{counts['unchecked']} not checked."
    )
