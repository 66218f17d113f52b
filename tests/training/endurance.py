"""Kills training runs many times over, where the tests do it once: every run must end the same.

    python tests/training/endurance.py              ten kills of each kind, some minutes
    python tests/training/endurance.py --times 100 --kinds rank

Kinds: "one", a run of one process is killed at any moment and given again; "two", the same with
both processes of torchrun; "rank", one of two processes is killed and torchrun restarts them. Every
run must have the losses, figures and weights of one that nobody disturbed. Prints a line per kill;
the exit code is 1 unless all went well.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from runs import STEPS, assert_same_run, command, finish, losses, start
from test_killed import OWN_STORE, a_rank, kill_when, wait_until

KINDS = ("one", "two", "rank")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10, help="kills of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    arguments = parser.parse_args()
    good = 0
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            reference = Path(folder) / "reference"
            finish(start(_command(kind, reference)))
            for number in range(arguments.times):
                rng = random.Random(f"{arguments.seed} {kind} {number}")
                begin = time.monotonic()
                try:
                    what = disturb(kind, Path(folder) / str(number), rng)
                    assert_same_run(Path(folder) / str(number), reference)
                except AssertionError:
                    traceback.print_exc()
                    print(f"{kind} {number + 1}: FAILED", flush=True)
                    continue
                good += 1
                seconds = time.monotonic() - begin
                print(f"{kind} {number + 1}: {what}, same end, {seconds:.0f} s", flush=True)
    wanted = arguments.times * len(arguments.kinds)
    print(f"{good} of {wanted} runs ended as if nobody had disturbed them")
    return 0 if good == wanted else 1


def disturb(kind: str, folder: Path, rng: random.Random) -> str:
    """Runs a training to its end with a kill on the way; returns in words what was killed when."""
    step, delay = rng.randrange(1, STEPS), rng.random() * 0.05

    def moment() -> bool:
        if len(losses(folder)) < step:
            return False
        time.sleep(delay)  # somewhere in the step, its checkpoint or its evaluation
        return True

    process = start(_command(kind, folder), **OWN_STORE)
    if kind == "rank":
        wait_until(process, moment)
        rank = rng.randrange(2)
        os.kill(a_rank(process, rank), signal.SIGKILL)
        assert "Goes on from step" in finish(process)
        return f"rank {rank} killed after step {step}"
    kill_when(process, moment)
    finish(start(_command(kind, folder)))
    return f"killed after step {step}"


def _command(kind: str, folder: Path) -> list[str]:
    if kind == "one":
        return command(folder)
    return command(folder, processes=2, restarts=2 if kind == "rank" else 0, batch_size=3)


if __name__ == "__main__":
    sys.exit(main())
