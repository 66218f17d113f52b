"""Who learns the order of time: networks trained on `MotionClips` and tried on held-out clips.

    python -m benchmarks.motion [--seeds 3] [--output RESULTS.json]

All have the same data, seeds, schedule and number of steps, those of the preset "motion":

- ours: the defaults of `create_model`;
- original: temporal strides of 2 everywhere and zero padding, as the published 3-D adaptation;
- frames: our network shown one frame at a time, trained and tried with the mean of the frames'
  logits, so that it has every frame but not their order.

The result is written after every run; the same command goes on where it was interrupted. Accuracies
do not depend on how busy the machine is; its number of threads changes the rounding. `python -m
benchmarks.table` makes the README's table of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Also where this runs as `python -m benchmarks.motion`.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from readings import RESULTS, read

from evit_models.training import TrainConfig, Trainer, evaluate, load_config
from evit_models.training.config import PRESETS
from evit_models.training.datasets import make_datasets, pixel_config
from evit_models.training.objective import SINGLE
from evit_models.video.datasets import MotionClips
from evit_models.video.datasets.motion import KINDS

CONTESTANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "original": {"temporal_strides": "original", "temporal_padding": "zeros"},
    "frames": {},
}
TEST_CLIPS = 500
Run = dict[str, Any]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.motion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--output", type=Path, default=RESULTS / "motion.json", help="the result")
    arguments = parser.parse_args()
    compare(arguments.output, range(arguments.seeds))


def compare(
    path: Path,
    seeds: range,
    *,
    overrides: dict[str, Any] | None = None,
    test_clips: int = TEST_CLIPS,
    say: Callable[[str], object] = lambda text: print(text, flush=True),
) -> dict[str, Any]:
    """Makes the runs that a result does not have yet, and returns the whole result.

    Args:
        overrides: keys of the configuration that differ from the preset, in all runs.

    Raises:
        SystemExit: the result is there, of another configuration.
    """
    preset = {**PRESETS["motion"], **(overrides or {})}
    setting = {"preset": preset, "test_clips": test_clips}
    result = read(path) if path.exists() else {"setting": setting, "runs": []}
    if result["setting"] != setting:
        raise SystemExit(f"{path} holds runs of another setting; remove it or give --output")
    done = {(run["who"], run["seed"]) for run in result["runs"]}
    for seed in seeds:
        for who in CONTESTANTS:
            if (who, seed) in done:
                continue
            say(f"{who}, seed {seed}")
            result["runs"].append(train(who, seed, preset, test_clips, say))
            result["datetime"] = datetime.datetime.now(datetime.timezone.utc).isoformat()
            result["machine_info"] = _machine()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def train(
    who: str, seed: int, preset: dict[str, Any], test_clips: int, say: Callable[[str], object]
) -> Run:
    """Trains one network, and tries it on clips that nothing else was decided by."""
    config = load_config(overrides={**preset, **CONTESTANTS[who], "seed": seed})
    curve: list[dict[str, float]] = []

    def observe(kind: str, facts: dict[str, Any]) -> None:
        if kind == "evaluation":
            top1 = facts["heads"][SINGLE]["top1"]
            curve.append({"step": facts["step"], "top1": top1})
            say(f"  step {facts['step']}: {100 * top1:.1f} % of validation clips")

    with tempfile.TemporaryDirectory(prefix="evit-motion-") as folder:
        trainer = Trainer(config, Path(folder), *make_datasets(config), observe=observe)
        if who == "frames":
            model = trainer.model
            model.forward = partial(frame_by_frame, model.forward)  # type: ignore[method-assign]
        trainer.run()
    run: Run = {
        "who": who,
        "seed": seed,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "steps": trainer.total_steps,
        "skipped": trainer.skipped,
        "validation": curve,
        **tested(trainer, config, test_clips),
    }
    say(f"  {100 * run['top1']:.1f} % of test clips; {run['kinds']}")
    return run


def tested(trainer: Trainer, config: TrainConfig, clips: int) -> Run:
    """Accuracy on the split "test": of all clips, and of those of every kind."""
    pixels = pixel_config(config)
    data = MotionClips(
        *("test", clips, config.frames, config.size, config.seed),
        mean=pixels["mean"],
        std=pixels["std"],
    )
    found = evaluate(trainer.model, trainer.heads, data, config, trainer.ranks)
    said = found.videos[SINGLE]
    right = said.best[:, 0] == said.label
    of_kind = {
        kind: np.isin(said.label, [data.class_names.index(name) for name in KINDS[kind]])
        for kind in KINDS
    }
    return {
        "top1": float(right.mean()),
        "majority": float(np.bincount(said.label).max() / len(said.label)),
        "chance_without_order": data.chance,
        "kinds": {kind: float(right[chosen].mean()) for kind, chosen in of_kind.items()},
    }


def frame_by_frame(forward: Callable[[Tensor], Tensor], clip: Tensor) -> Tensor:
    """The logits of a network that is shown (B, 3, T, H, W) clips one frame at a time: means."""
    frames = clip.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    logits: Tensor = forward(frames).unflatten(0, (len(clip), -1))
    return logits.mean(1)


def _machine() -> dict[str, Any]:
    """The machine's kind and the software; nothing that tells one machine from its twin."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "evit": version("evit"),
    }


if __name__ == "__main__":
    main()
