"""`evit info`: versions, and what the kernels can do on this machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import click

from evit_models.cli.common import debug_option, json_option


@click.command()
@json_option
@debug_option
def info(as_json: bool) -> None:
    """Show versions, this machine, and which kernels are available."""
    from evit_models.cli.ui import print_json, print_table

    facts = _facts()
    if as_json:
        print_json(facts)
        return
    rows = [(name, str(value)) for name, value in facts["versions"].items()]
    rows += [(name, str(value)) for name, value in facts["machine"].items()]
    print_table(("", ""), rows)
    click.echo()
    print_table(
        ("operator", "backend", "available"),
        [
            (row["operator"], row["backend"], "yes" if row["available"] else f"no: {row['reason']}")
            for row in facts["kernels"]
        ],
    )
    click.echo("\npython -m evit_kernels tells more about the kernels.")


def _facts() -> dict[str, Any]:
    import av
    import torch

    from evit_kernels import backends

    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    kernels = [
        {
            "operator": row.operator,
            "backend": row.backend,
            "device": row.device,
            "available": row.available,
            "reason": row.reason,
        }
        for row in backends.availability(device)
    ]
    return {
        "versions": {
            "evit": version("evit"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "av": f"{av.__version__} (libavcodec {ffmpeg})",
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cpu capability": torch.backends.cpu.get_cpu_capability(),
            "cuda": torch.cuda.get_device_name() if cuda else "none",
        },
        "kernels": kernels,
    }
