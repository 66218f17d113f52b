"""Peak memory of a training step of b1, every step in a fresh process, peers by turns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rounds import OURS, PYTORCH, Group, recorded
from shapes import CLIP, MODEL

PEERS = (OURS, *PYTORCH)
# Memory hardly varies: more than a few processes would tell nothing new.
MOST_ROUNDS = 3


@pytest.fixture(scope="module")
def steps(rounds: int) -> Group:
    """Peak bytes, and seconds of the first step, of every peer."""
    results: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    for _ in range(min(rounds, MOST_ROUNDS)):
        for peer in PEERS:
            results[peer].append(_step(peer))
    return Group(
        "model training step memory",
        f"{MODEL} {'x'.join(map(str, CLIP))}",
        {peer: [step["seconds"] for step in steps] for peer, steps in results.items()},
        extra={
            peer: {"peak_bytes": [int(step["peak_bytes"]) for step in steps]}
            for peer, steps in results.items()
        },
    )


@recorded
@pytest.mark.parametrize("peer", PEERS)
def bench_memory(benchmark: Any, steps: Group, peer: str) -> None:
    steps.report(benchmark, peer)


def _step(peer: str) -> dict[str, float]:
    script = Path(__file__).with_name("memory_step.py")
    done = subprocess.run(
        [sys.executable, str(script), peer], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} {peer} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout)
    return result
