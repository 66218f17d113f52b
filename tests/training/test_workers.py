"""Workers that read clips: killed, hanging, or with an error of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import command, start, tiny, trainer
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from evit_models.training import TrainingError
from evit_models.training.loading import loader, read, reading
from evit_models.video.datasets import DatasetError, MotionClips, Sample, TooManyBadVideos


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tests/conftest.py restores the number


class Troubled(MotionClips):
    """In a worker, what `trouble` says happens at a clip of the second step or a later one."""

    trouble = ""
    asked = 0

    def __getitem__(self, index: int) -> Sample:
        self.asked += 1
        if self.asked == 34:
            if self.trouble == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.trouble == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif self.trouble == "asleep":
                time.sleep(600)
            elif self.trouble == "too many":
                raise TooManyBadVideos("3 of 40 videos cannot be read")
            elif self.trouble == "bug":
                raise DatasetError("list.txt", "is no list", line=3)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("killed", "a worker that reads clips died"),
        ("stopped", "no batch came within 3 s"),
        ("asleep", "no batch came within 3 s"),
        ("too many", "3 of 40 videos cannot be read"),
        ("bug", "list.txt, line 3: is no list"),
    ],
)
def test_trouble_is_one_sentence_in_time(trouble: str, words: str, tmp_path: Path) -> None:
    clips = Troubled("train", 40, 5, 16)
    clips.trouble = trouble
    config = tiny(workers=1, worker_timeout=3.0, checkpoint_steps=1)
    start = time.monotonic()
    with pytest.raises((TrainingError, TooManyBadVideos)) as error:
        trainer(tmp_path, config, train_set=clips).run()
    assert time.monotonic() - start < 60
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "the last good checkpoint is" in str(error.value)


def test_a_death_is_heard_of_where_a_batch_is_waited_for() -> None:
    """Not wherever the main thread is: what catches errors there would swallow it."""
    config = tiny(workers=1)
    clips = MotionClips("train", 40, 5, 16)
    lists = [[index] for index in range(40)]
    batches = read(loader(clips, lists, config, "cpu"), config)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # Python's handlers run after it
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed|exited)"):
        next(batches)
    assert len(list(read(loader(clips, lists, config, "cpu"), config))) == 40


@pytest.mark.parametrize("first", [True, False])
def test_no_death_is_heard_of_while_a_loader_starts(
    first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts threads then; Python prints a traceback where an error comes between."""
    whole: list[bool] = []

    def reset(self: _MultiProcessingDataLoaderIter, *args: object, **kwargs: object) -> None:
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # Python's handlers run after it
        original(self, *args, **kwargs)
        whole.append(True)

    signal_handling._set_SIGCHLD_handler()
    handler = signal.getsignal(signal.SIGCHLD)
    if first:
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    original = _MultiProcessingDataLoaderIter._reset
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_reset", reset)
    config = tiny(workers=1)
    clips = loader(MotionClips("train", 40, 5, 16), [[index] for index in range(40)], config, "cpu")
    try:
        with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed|exited)"):
            next(read(clips, config))
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert whole == [True]


def test_without_workers_no_handler_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        config = tiny(workers=0)
        clips = loader(MotionClips("train", 40, 5, 16), [[0], [1]], config, "cpu")
        assert len(list(read(clips, config))) == 2
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_no_death_is_heard_of_behind_an_error() -> None:
    """While an error is on its way, workers may end; then PyTorch would raise it in between."""

    class Bad(MotionClips):
        def __getitem__(self, index: int) -> Sample:
            if index == 5:
                raise DatasetError("list.txt", "is no list", line=3)
            return super().__getitem__(index)

    config = tiny(workers=2)
    lists = [[index] for index in range(40)]
    batches = read(loader(Bad("train", 40, 5, 16), lists, config, "cpu"), config)
    with pytest.raises(DatasetError) as error:
        list(batches)
    assert error.value.__traceback__ is not None  # which keeps the loader and its workers
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # Python's handlers run after it
    good = loader(MotionClips("train", 40, 5, 16), lists, config, "cpu")
    assert len(list(read(good, config))) == 40
    handler = signal.getsignal(signal.SIGCHLD)
    assert callable(handler)
    assert handler.__module__.startswith("torch.")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_batch_that_stays_half_handed_over_is_a_death(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object) -> None:
        raise error

    config = tiny(workers=1)
    lists = [[index] for index in range(40)]
    batches = read(loader(MotionClips("train", 40, 5, 16), lists, config, "cpu"), config)
    next(batches)
    monkeypatch.setattr(
        "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", lose
    )
    with (
        pytest.raises(TrainingError, match="a worker that reads clips died"),
        reading(config, lambda: "nothing is lost"),
    ):
        next(batches)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_ends_with_one_line(workers: int, tmp_path: Path) -> None:
    """A real worker of a real run is killed from outside."""
    process = start(command(tmp_path / "run", workers=workers, epochs=200, checkpoint_steps=0))
    deadline = time.monotonic() + 120
    worker = None
    while worker is None:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [child for task in tasks for child in task.read_text().split()]
        steps = (tmp_path / "run" / "log.jsonl").exists()
        worker = int(children[-1]) if children and steps else None
    os.kill(worker, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in out
    (line,) = [line for line in out.splitlines() if line.startswith("evit: error:")]
    assert "a worker that reads clips died" in line


def test_waiting_for_data_is_reported(tmp_path: Path) -> None:
    class Slow(MotionClips):
        def __getitem__(self, index: int) -> Sample:
            time.sleep(0.05)
            return super().__getitem__(index)

    said: list[str] = []
    trainer(
        tmp_path,
        tiny(epochs=2),
        train_set=Slow("train", 40, 5, 16),
        observe=lambda kind, facts: said.append(facts["text"]) if kind == "warning" else None,
    ).run()
    (warning,) = said
    assert "went into waiting for clips" in warning
    assert "evit prepare" in warning
