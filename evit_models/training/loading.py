"""From datasets to batches: workers, their deadline, and what is said when they fail."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import record_function
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from evit_models.training.config import TrainConfig
from evit_models.training.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from evit_models.video.datasets import ClipDataset


def loader(
    dataset: ClipDataset, batches: Sequence[Sequence[int]], config: TrainConfig, device: str
) -> DataLoader[Any]:
    """Returns the batches of the given clips, read by `config.workers` processes."""
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=config.workers,
        pin_memory=device == "cuda",
    )


def read(batches: DataLoader[Any], config: TrainConfig) -> Iterator[Any]:
    """Yields what a loader gives, and ends its workers where a batch does not come in time.

    The loader's own timeout does not cover all: a worker that is stopped while it hands over a
    tensor is waited for without an end.
    """
    with _deaths_wait(config.workers) as hear_of_deaths:
        # The first step of a loader imports a module of the profiler, and PyTorch prints and
        # forgets whatever is raised meanwhile, the death of a worker too.
        with record_function("evit_models.training.loading.read"):
            iterator, done = iter(batches), object()
        while True:
            late = threading.Event()
            watch = threading.Timer(config.worker_timeout, _give_up, (late,))
            watch.daemon = True
            if config.workers:
                watch.start()
            try:
                with hear_of_deaths():
                    batch = next(iterator, done)
            except Exception as error:
                if late.is_set():
                    raise TimeoutError("DataLoader timed out") from error
                # Who is killed while it hands a batch over is missed before its death is known; an
                # error of the dataset's own says where it was caught.
                lost = isinstance(error, ConnectionError | EOFError)
                if config.workers and lost and "DataLoader" not in str(error):
                    raise RuntimeError("DataLoader worker exited unexpectedly.") from error
                raise
            finally:
                watch.cancel()
            if batch is done:
                return
            yield batch


@contextmanager
def _deaths_wait(workers: int) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Lets the death of a worker be heard of only inside the context managers that it gives.

    PyTorch raises it from a signal handler, wherever the main thread is at that moment: in the
    middle of a backward pass, or in a library that prints and forgets whatever is raised.
    """
    if not workers or threading.current_thread() is not threading.main_thread():
        yield nullcontext  # PyTorch sets no handler for such loaders
        return
    # The first loader would set it only when its workers run, and start the threads of their
    # queues behind that: Python prints a traceback where one is started and an error comes between.
    signal_handling._set_SIGCHLD_handler()
    handler = signal.getsignal(signal.SIGCHLD)
    if isinstance(handler, _Later):
        handler = handler.handler  # an earlier loader ended with an error
    if not callable(handler):
        yield nullcontext  # somebody took PyTorch's away
        return
    later = _Later(handler)

    @contextmanager
    def hear() -> Iterator[None]:
        try:
            signal.signal(signal.SIGCHLD, later.handler)
            if later.missed:
                later.handler(*later.missed.pop())
            yield
        finally:
            signal.signal(signal.SIGCHLD, later)

    signal.signal(signal.SIGCHLD, later)
    failed = False
    try:
        yield hear
    except Exception:
        failed = True
        raise
    finally:
        # Behind an error, deaths are not heard of: PyTorch would raise them while it is on its way,
        # wherever another worker ends.
        if not failed:
            signal.signal(signal.SIGCHLD, handler)


class _Later:
    """A signal handler that takes notes for another one."""

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self.handler = handler
        self.missed: list[tuple[int, FrameType | None]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.missed.append((number, frame))


@contextmanager
def reading(config: TrainConfig, safe: Callable[[], str]) -> Iterator[None]:
    """Turns what goes wrong while clips are read into one sentence.

    Args:
        safe: says what is safe on the disk.

    Raises:
        TrainingError: a worker was killed, hangs, or met an error that its dataset did not handle.
        TooManyBadVideos: more videos cannot be read than may be replaced.
    """
    try:
        yield
    except (ConfigError, TrainingError) as error:
        _end_workers()
        if "\n" not in str(error):
            raise
        raise type(error)(f"{_last_line(error)}; {safe()}") from error
    except Exception as error:
        from evit_models.video.datasets import TooManyBadVideos

        text = str(error)
        if isinstance(error, TooManyBadVideos):
            _end_workers()
            raise TooManyBadVideos(f"{_last_line(error)}; {safe()}") from error
        if "DataLoader" not in text and "DataLoader" not in type(error).__name__:
            raise
        _end_workers()
        if "timed out" in text:
            what = (
                f"no batch came within {config.worker_timeout:g} s (worker_timeout): a worker "
                "hangs, or reading is far too slow"
            )
        elif "killed by signal" in text or "exited unexpectedly" in text:
            what = (
                f"a worker that reads clips died: {text.splitlines()[0]} A machine short of memory "
                "kills workers: try fewer (workers)"
            )
        else:
            what = f"reading clips failed: {text.strip().splitlines()[-1]}"
        raise TrainingError(f"{what}; {safe()}") from error


def bottleneck(waiting: float, total: float, workers: int) -> str | None:
    """Returns advice where more than a third of the time was spent waiting for clips, or None."""
    share = waiting / total if total else 0.0
    if share <= 1 / 3:
        return None
    return (
        f"{100 * share:.0f} % of the time went into waiting for clips. What helps: decode the "
        f"videos once into small ones (evit prepare), more workers (workers, now {workers}), or "
        "fewer frames"
    )


def move(batch: Any, device: torch.device) -> Any:
    """Returns a batch with its tensors on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    return batch


def _last_line(error: Exception) -> str:
    """A worker sends its whole traceback; the last line is the error itself."""
    line = str(error).strip().splitlines()[-1]
    return line.partition(f"{type(error).__name__}: ")[2] or line


def _give_up(late: threading.Event) -> None:
    late.set()
    _end_workers()


def _end_workers() -> None:
    """Ends workers that may hang: a stopped process would keep this one from ever leaving."""
    main = threading.current_thread() is threading.main_thread()
    # PyTorch answers the end of a worker with an error, anywhere in the main thread.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    try:
        for worker in multiprocessing.active_children():
            worker.kill()
            if main:
                worker.join()
    finally:
        if main:
            signal.signal(signal.SIGCHLD, handler)
