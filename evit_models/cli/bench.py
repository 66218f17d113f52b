"""`evit bench`: one model or one operator, ours against PyTorch in both memory layouts."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evit_models.cli.common import DEFAULT_MODEL, UserError, debug_option, model_options

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from evit_models.cli.timing import Timing

OPERATORS = (
    "depthwise_conv3d",
    "relu_linear_attention_qkv",
    "pointwise_conv3d",
    "pointwise_depthwise_conv3d",
    "batch_norm_activation",
)
# A backend is worth measuring in a model where it serves one of these.
OPERATORS_OF_MODELS = ("depthwise_conv3d", "relu_linear_attention")


@click.command()
@click.option("--model", "name", metavar="NAME", help=f"A model. [default: {DEFAULT_MODEL}]")
@click.option("--op", type=click.Choice(OPERATORS), help="An operator, instead of a model.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--frames",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Frames of a model's clip; T of an operator's input.",
)
@click.option(
    "--size", type=click.IntRange(1), help="H and W. [default: 224 for a model, 28 for an operator]"
)
@click.option(
    "--channels",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Channels of an operator's input.",
)
@click.option(
    "--kernel",
    type=click.IntRange(1, 7),
    default=3,
    show_default=True,
    help="Kernel size of depthwise_conv3d.",
)
@click.option(
    "--head-dim",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Head width of relu_linear_attention_qkv.",
)
@click.option(
    "--dtype",
    "dtype_name",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16", "float16"]),
)
@click.option("--backward", is_flag=True, help="Time forward and backward together.")
@click.option("--rounds", type=click.IntRange(1), default=11, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of PyTorch. [default: PyTorch's]")
@model_options
@click.option(
    "--mode",
    type=click.Choice(["eager", "compile", "graph"]),
    default="eager",
    show_default=True,
    help="How every peer is called: as it is, under torch.compile, from a captured CUDA graph.",
)
@click.option(
    "--layout",
    type=click.Choice(["channels_last", "ncdhw"]),
    default="channels_last",
    show_default=True,
    help="Memory format of our operator's input; models always work in channels_last.",
)
@click.option(
    "--profile",
    "profile_path",
    metavar="FILE",
    help="Write a trace of one call of ours, for chrome://tracing or Perfetto.",
)
@click.option(
    "--json",
    "json_path",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="JSON on stdout and nothing else, or into FILE next to the table.",
)
@debug_option
def bench(
    name: str | None,
    op: str | None,
    batch: int,
    frames: int,
    size: int | None,
    channels: int,
    kernel: int,
    head_dim: int,
    dtype_name: str,
    backward: bool,
    rounds: int,
    threads: int | None,
    backend: str | None,
    device_name: str,
    mode: str,
    layout: str,
    profile_path: str | None,
    json_path: str | None,
) -> None:
    """Time ours and PyTorch, in NCDHW and in channels-last, on the same numbers.

    All peers run once in each round, in an order that rotates; shown are the median of the rounds
    and the median of the ratios within rounds.
    """
    import torch

    from evit_models.cli.common import check_backend, check_model_name, parse_device
    from evit_models.cli.cuda import peak_bytes
    from evit_models.cli.peers import model_peers, operator_peers
    from evit_models.cli.timing import paired_rounds
    from evit_models.cli.ui import print_json, progress

    if name and op:
        raise UserError("--model and --op exclude each other")
    device = parse_device(device_name)
    if mode == "graph" and device.type != "cuda":
        raise UserError("--mode: graph needs --device cuda; a CPU has no CUDA graphs")
    if layout == "ncdhw" and not op:
        raise UserError("--layout: ncdhw needs --op; models work in channels_last")
    check_backend(backend, device, [op.removesuffix("_qkv")] if op else OPERATORS_OF_MODELS)
    dtype = getattr(torch, dtype_name)
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    if op:
        shape = (batch, channels, frames, size or 28, size or 28)
        peers = operator_peers(
            op,
            shape,
            dtype,
            device,
            backend,
            kernel=kernel,
            head_dim=head_dim,
            backward=backward,
            mode=mode,
            layout=layout,
        )
        what = op
    else:
        what = check_model_name(name or DEFAULT_MODEL)
        shape = (batch, 3, frames, size or 224, size or 224)
        peers = model_peers(what, shape, dtype, device, backend, backward=backward, mode=mode)

    quiet = json_path == "-"
    with progress("round", rounds, quiet=quiet) as advance:
        timings = paired_rounds(peers, rounds, device, after_round=advance)
    memory = {name: peak_bytes(call, device) for name, call in peers.items()}
    facts: dict[str, Any] = {
        "what": what,
        "mode": mode,
        "pass": "forward and backward" if backward else "forward",
        "input": list(shape),
        "dtype": dtype_name,
        "device": str(device),
        "backend": backend or "automatic",
        "machine": {
            "processor": platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "rounds": rounds,
        "peers": _rows(timings, memory),
    }
    if profile_path:
        facts["launches"] = _profile(next(iter(peers.values())), device, profile_path)
    if quiet:
        print_json(facts)
        return
    _print(facts)
    if json_path:
        try:
            Path(json_path).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json: {json_path}: {error.strerror}") from error
        click.echo(f"Wrote {json_path}.", err=True)


def _profile(call: Callable[[], object], device: torch.device, path: str) -> int | None:
    """Write the trace of one call; how many kernels it launched on a GPU."""
    from evit_models.cli.cuda import launches, profile

    profiled = profile(call, device)
    try:
        # Tried first: the profiler only logs that it could not write.
        Path(path).touch()
        profiled.export_chrome_trace(path)
    except OSError as error:
        raise UserError(f"--profile: {path}: {error.strerror}") from error
    click.echo(f"Wrote {path}.", err=True)
    return launches(profiled) if device.type == "cuda" else None


def _rows(timings: dict[str, Timing], memory: dict[str, int | None]) -> list[dict[str, Any]]:
    ours = next(iter(timings.values()))
    return [
        {
            "name": name,
            "median_ms": 1e3 * timing.median,
            "times_ours": timing.slower_than(ours),
            "peak_bytes": memory[name],
            "rounds_ms": [1e3 * seconds for seconds in timing.seconds],
        }
        for name, timing in timings.items()
    ]


def _print(facts: dict[str, Any]) -> None:
    from evit_models.cli.ui import print_table

    shape = " x ".join(map(str, facts["input"]))
    machine = facts["machine"]
    click.echo(
        f"{facts['what']}, {facts['mode']}, {facts['pass']}, {shape}, {facts['dtype']}, "
        f"{facts['device']}, {machine['threads']} threads, "
        f"median of {facts['rounds']} paired rounds"
    )
    # A CPU's allocator does not tell.
    measured = all(row["peak_bytes"] is not None for row in facts["peers"])
    head = ("", "ms", "times ours", *(["peak MiB"] if measured else []))
    rows = []
    for row in facts["peers"]:
        cells = [row["name"], f"{row['median_ms']:.3f}", f"{row['times_ours']:.2f}"]
        rows.append((*cells, *([f"{row['peak_bytes'] / 2**20:.1f}"] if measured else [])))
    print_table(head, rows, numbers=tuple(range(1, len(head))))
    if facts.get("launches") is not None:
        click.echo(f"Ours launches {facts['launches']} kernels.")
