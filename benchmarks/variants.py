"""Every variant, b0 to l3, trained for a few hundred steps: losses fall and are always finite.

    python -m benchmarks.variants RESULT.json                 on the CPU, small clips, float32
    python -m benchmarks.variants RESULT.json --device cuda   16x224x224, bfloat16 and float16
    python -m benchmarks.variants RESULT.json --only l3       some variants

Not a measurement of speed. A run lives in a folder beside the result and goes on where it stopped,
so that the same command finishes what was interrupted; a variant that is in the result is not run
again. The exit code is 1 where a loss was not finite or did not fall.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from evit_models import list_models
from evit_models.cli.train import run_training
from evit_models.durable import write_durably
from evit_models.training import TrainConfig, load_config, ranks
from evit_models.training.logging import read_log

STEPS = 240
_PARTS = 3  # epochs, each of which ends with a checkpoint
_ENDS = 30  # steps at the beginning and at the end whose mean losses are compared
# Five frames are the fewest of these clips; after the stem's stride of 2, attention sees three.
SMALL: dict[str, Any] = {"frames": 5, "size": 32, "batch_size": 4}
LARGE: dict[str, Any] = {"frames": 16, "size": 224, "batch_size": 8}


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", type=Path, help="JSON file, written after every variant")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="*", metavar="VARIANT", help="such as b0 l3 [default: all]")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    device, steps = arguments.device, arguments.steps
    names = [f"efficientvit3d_{name}" for name in arguments.only or ()] or list_models()
    content = _opened(arguments.result, device)
    for name in names:
        for precision in ("fp32",) if device == "cpu" else ("bf16", "fp16"):
            if any((r["model"], r["precision"]) == (name, precision) for r in content["runs"]):
                continue
            config = config_of(name, precision, device, steps)
            folder = arguments.result.with_suffix("") / f"{name}-{precision}"
            print(f"{name}, {precision}", file=sys.stderr)
            with ranks(device) as group:
                run_training(config, folder, group, quiet=False)
            content["runs"].append(summary(config, read_log(folder), steps))
            write_durably(arguments.result, json.dumps(content, indent=1).encode() + b"\n")
            shutil.rmtree(folder)
    for run in content["runs"]:
        print(
            f"{run['model']:20} {run['precision']}: loss {run['first']:.3f} to {run['last']:.3f}, "
            f"{run['steps']} steps, {run['skipped']} skipped, largest loss {run['largest']:.3f}"
        )
    return 0 if all(run["falls"] and run["finite"] for run in content["runs"]) else 1


def config_of(name: str, precision: str, device: str, steps: int) -> TrainConfig:
    """Returns the run of a variant; what variants share is nearly all of it."""
    shape = SMALL if device == "cpu" else LARGE
    epochs = min(_PARTS, steps)
    return load_config(
        overrides={
            **shape,
            "model": name,
            "dataset": "motion",
            "precision": precision,
            "motion_clips": steps // epochs * shape["batch_size"],
            "epochs": epochs,
            "eval_epochs": epochs,
            "lr": 5e-4,
            "warmup_epochs": 0.3,
            "workers": 0 if device == "cpu" else 4,
        }
    )


def summary(config: TrainConfig, log: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Returns what the log of a run says of its losses."""
    rows = [row for row in log if row["kind"] == "step"]
    losses = [row["loss"] for row in sorted(rows, key=lambda row: row["step"])]
    skipped = sum(row["kind"] == "skip" for row in log)
    ends = max(1, min(_ENDS, len(losses) // 3))
    first, last = statistics.fmean(losses[:ends]), statistics.fmean(losses[-ends:])
    # fp16 finds the scale of its loss by overflowing gradients; the loss itself is finite then.
    finite = all(map(math.isfinite, losses)) and not any(
        row["kind"] == "skip" and not math.isfinite(float(row["loss"])) for row in log
    )
    whole = len(losses) + skipped == steps // config.epochs * config.epochs
    return {
        "model": config.model,
        "precision": config.precision,
        "clip": [config.batch_size, 3, config.frames, config.size, config.size],
        "steps": len(losses),
        "skipped": skipped,
        "finite": finite and whole,
        "falls": last < first,
        "first": first,
        "last": last,
        "largest": max(losses),
        "losses": [float(f"{loss:.5g}") for loss in losses],
    }


def _opened(result: Path, device: str) -> dict[str, Any]:
    if result.exists():
        content: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return content
    return {
        "datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "evit": version("evit"),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "runs": [],
    }


if __name__ == "__main__":
    sys.exit(main())
