"""Videos decoded once: made small, and cheap to seek in, or stored as clips, for many epochs.

A target is named by a digest of its source and of how it is made, and appears by renaming, complete
or not at all. So whatever is there is right, and a run that was killed goes on by being started
again.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from os import PathLike
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from evit_models.durable import write_durably

from .datasets.files import Segment, open_footage
from .errors import CorruptVideo, VideoError, VideoWarning
from .sampling import segment_indices
from .transform import resize_short_side
from .writer import write_video

__all__ = [
    "Preparation",
    "PrepareError",
    "Recipe",
    "Source",
    "loading_speed",
    "prepare_table",
    "prepare_videos",
]

#: A video: the path of a file, or a part of one.
Source = str | Segment

# Keyframes so close that a clip decodes at most so many frames in vain, and H.264 without the parts
# that are slow to decode.
_ENCODING = {"g": "12", "tune": "fastdecode"}
_TEMPORARY = re.compile(r"\..*\.(\d+)\.tmp\.(mp4|npy)")
_SUFFIXES = (".mp4", ".npy")
_WAITING = 4  # jobs handed out per process, so that a list of a million does not fill the memory


class PrepareError(RuntimeError):
    """Preparing cannot go on; what is done stays done, and the same call goes on from there."""


@dataclass(frozen=True)
class Recipe:
    """What is made of a video.

    ``short_side``: of the frames, in pixels; smaller ones keep their size. ``clip_frames``: None
    re-encodes all frames as H.264; else so many, spread over the video, are stored as an array.
    ``crf``: quality of H.264, 0 (best) to 51.
    """

    short_side: int = 256
    clip_frames: int | None = None
    crf: int = 20

    def __post_init__(self) -> None:
        if self.short_side < 16:
            raise ValueError(f"Recipe: short_side is {self.short_side}, expected 16 or more")
        if self.clip_frames is not None and self.clip_frames < 1:
            raise ValueError(f"Recipe: clip_frames is {self.clip_frames}, expected 1 or more")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"Recipe: crf is {self.crf}, expected 0 to 51")


@dataclass(frozen=True)
class Preparation:
    """What came of preparing: ``list_file`` names the targets, relative to its folder, and labels.

    ``made`` and ``kept``: videos that were made now, or found done. ``bad``: path and reason of
    those that could not be read, which the list leaves out; ``damaged``: path and what is missing,
    which it does not. Both stand in ``report``, which is None where there are none. ``pairs``: what
    was given, and the file that was made of it.
    """

    list_file: Path
    made: int
    kept: int
    bad: list[tuple[str, str]]
    damaged: list[tuple[str, str]]
    report: Path | None
    pairs: list[tuple[Source, str]]


def prepare_videos(
    sources: Sequence[Source],
    labels: Sequence[int],
    output: str | PathLike[str],
    *,
    name: str = "list",
    recipe: Recipe | None = None,
    processes: int | None = None,
    advance: Callable[[str], None] = lambda path: None,
) -> Preparation:
    """Make small copies of videos in a folder, and a list of them with their labels.

    The folder gets ``videos/``, ``NAME.txt`` (a list for `VideoList`, in the order of ``paths``)
    and, where videos were bad, ``NAME.bad.txt``. Several lists may share a folder; a video that
    stands in two is made once. ``processes``: by default one per core. ``advance`` is told the path
    of every video that is done.

    Raises: PrepareError where the folder cannot be written, a process was killed, or no video at
    all could be read.
    """
    if len(sources) != len(labels):
        raise ValueError(f"prepare_videos: {len(sources)} sources, {len(labels)} labels")
    folder = Path(output)
    with _explained(folder):
        outcomes = _all_done(sources, folder, recipe or Recipe(), processes, advance)
        good = [
            (source, outcomes[source].target, label)
            for source, label in zip(sources, labels, strict=True)
            if not outcomes[source].bad
        ]
        listing = folder / f"{name}.txt"
        done = _concluded(folder, listing, outcomes, [(source, to) for source, to, _ in good])
        lines = [f"videos/{target} {label}\n" for _, target, label in good]
        write_durably(listing, _encoded("".join(lines)))
        return done


def prepare_table(
    table: str | PathLike[str],
    segments: Mapping[str, Segment],
    output: str | PathLike[str],
    *,
    recipe: Recipe | None = None,
    processes: int | None = None,
    advance: Callable[[str], None] = lambda path: None,
) -> Preparation:
    """Make small copies of the actions of a table of EPIC-Kitchens, each a file of its own.

    The folder gets a copy of the table and, for every action of ``segments``, by its narration,
    ``NARRATION_ID.mp4`` (or ``.npy``), where `EpicKitchens` looks for it; so the folder is the root
    of that table. Actions that cannot be read have no file and stay in the table, which numbers the
    classes. All else is as in `prepare_videos`.
    """
    folder, table = Path(output), Path(table)
    with _explained(folder):
        made = _all_done([*segments.values()], folder, recipe or Recipe(), processes, advance)
        pairs: list[tuple[Source, str]] = []
        for narration, segment in segments.items():
            for old in (folder / f"{narration}{suffix}" for suffix in _SUFFIXES):
                old.unlink(missing_ok=True)
            target = made[segment].target
            if target:
                link = folder / f"{narration}{Path(target).suffix}"
                link.symlink_to(Path("videos", target))
                pairs.append((segment, target))
        done = _concluded(folder, folder / table.name, made, pairs)
        write_durably(folder / table.name, _encoded(table.read_text(encoding="utf-8-sig")))
        return done


def _all_done(
    sources: Sequence[Source],
    folder: Path,
    recipe: Recipe,
    processes: int | None,
    advance: Callable[[str], None],
) -> dict[Source, _Outcome]:
    if processes is not None and processes < 1:
        raise ValueError(f"prepare: processes is {processes}, expected 1 or more")
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    _clean(folder / "videos")
    outcomes: dict[Source, _Outcome] = {}
    jobs = ((source, folder / "videos", recipe) for source in dict.fromkeys(sources))
    for outcome in _in_processes(jobs, processes or os.cpu_count() or 1):
        outcomes[outcome.source] = outcome
        advance(_named(outcome.source))
    return outcomes


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns what stops everything into a PrepareError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise PrepareError(
            f"{error.filename or folder}: cannot be written: {reason}; what was done so far is "
            "kept, the same command goes on from there"
        ) from error
    except BrokenProcessPool as error:
        raise PrepareError(
            "a process was killed, as happens when memory runs out; what was done so far is kept, "
            "the same command with fewer processes goes on from there"
        ) from error


def loading_speed(sources: Sequence[Source], *, frames: int = 16, short_side: int = 256) -> float:
    """Clips per second that one process reads: ``frames`` spread over each video, resized."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        for source in sources:
            with open_footage(_segment(source)) as footage:
                for frame in footage.frames(segment_indices(footage.total, frames)):
                    resize_short_side(frame[None], short_side)
    return len(sources) / (time.perf_counter() - begin)


@dataclass(frozen=True)
class _Outcome:
    source: Source
    target: str = ""  # in the folder of videos; "" for a bad one
    made: bool = False
    bad: str = ""
    damaged: str = ""


_Job = tuple[Source, Path, Recipe]


def _in_processes(jobs: Iterator[_Job], processes: int) -> Iterator[_Outcome]:
    """Outcomes as they come; after an error or an interruption no further job is begun."""
    # Started anew, not forked: the caller may have threads that hold locks.
    with ExitStack() as stack:
        pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting: set[Future[_Outcome]] = set()
        while True:
            room = processes * _WAITING - len(waiting)
            waiting |= {pool.submit(_prepare, *job) for job in islice(jobs, room)}
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _prepare(source: Source, folder: Path, recipe: Recipe) -> _Outcome:
    """One video, in a process of the pool. Raises: OSError where the target cannot be written."""
    segment = _segment(source)
    try:
        target = folder / _target(segment, recipe)
    except OSError as error:
        return _Outcome(source, bad=error.strerror or str(error))
    name = f"{target.parent.name}/{target.name}"
    if target.exists():
        return _Outcome(source, name)
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", VideoWarning)
            _write(segment, temporary, recipe)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except VideoError as error:
        return _Outcome(source, bad=error.reason)
    finally:
        temporary.unlink(missing_ok=True)
    damage = "; ".join(str(w.message) for w in caught if issubclass(w.category, VideoWarning))
    return _Outcome(source, name, made=True, damaged=damage)


def _target(segment: Segment, recipe: Recipe) -> str:
    """A name of which the same source, unchanged, and the same recipe have one, and no others."""
    path, status = segment.path, os.stat(segment.path)
    part = (segment.start, segment.stop, segment.chunk_seconds)
    unchanged = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
    facts = (*unchanged, *part, asdict(recipe), _ENCODING)
    digest = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(path).stem)[:60]
    suffix = _SUFFIXES[recipe.clip_frames is not None]
    return f"{digest[:2]}/{stem}-{digest[:16]}{suffix}"


def _write(segment: Segment, target: Path, recipe: Recipe) -> None:
    path = segment.path
    with ExitStack() as stack:
        try:
            footage = stack.enter_context(open_footage(segment))
        except (OSError, av.error.FFmpegError) as error:
            raise CorruptVideo(path, str(error)) from error
        if recipe.clip_frames is not None:
            numbers = segment_indices(footage.total, recipe.clip_frames)
            clip = np.stack(list(_small(path, footage.frames(numbers), recipe.short_side)))
            content = io.BytesIO()  # to a file itself, save does not say why it fails
            np.save(content, clip, allow_pickle=False)
            target.write_bytes(content.getbuffer())
            return
        frames = footage.frames(np.arange(footage.total))
        options = {"crf": str(recipe.crf), "threads": "1", **_ENCODING}
        write_video(target, _small(path, frames, recipe.short_side), footage.fps, options=options)


def _small(
    path: str, frames: Iterator[NDArray[np.uint8]], short_side: int
) -> Iterator[NDArray[np.uint8]]:
    """Frames made small, of an even size; what goes wrong in reading is a VideoError."""
    while True:
        try:
            frame = next(frames, None)
        except (OSError, av.error.FFmpegError) as error:
            raise CorruptVideo(path, str(error)) from error
        if frame is None:
            return
        if min(frame.shape[:2]) > short_side:
            small = resize_short_side(frame[None], short_side)[0].round().byte()
            frame = small.permute(1, 2, 0).contiguous().numpy()
        height, width = (side - side % 2 for side in frame.shape[:2])
        yield frame[:height, :width]


def _concluded(
    folder: Path,
    listing: Path,
    outcomes: Mapping[Source, _Outcome],
    pairs: Sequence[tuple[Source, str]],
) -> Preparation:
    """Writes the report of bad videos, and says what came of it all."""
    bad = [(_named(o.source), o.bad) for o in outcomes.values() if o.bad]
    damaged = [(_named(o.source), o.damaged) for o in outcomes.values() if o.damaged]
    report = folder / f"{listing.stem}.bad.txt"
    lines = [f"{path}\tleft out\t{reason}\n" for path, reason in bad]
    lines += [f"{path}\tkept\t{reason}\n" for path, reason in damaged]
    if lines:
        write_durably(report, _encoded("".join(lines)))
    else:
        report.unlink(missing_ok=True)
    if not pairs:
        raise PrepareError(f"none of {len(outcomes)} videos could be read; {report} says why")
    made = sum(outcome.made for outcome in outcomes.values())
    return Preparation(
        list_file=listing,
        made=made,
        kept=len(outcomes) - made - len(bad),
        bad=bad,
        damaged=damaged,
        report=report if lines else None,
        pairs=[(source, str(folder / "videos" / target)) for source, target in pairs],
    )


def _segment(source: Source) -> Segment:
    return Segment(source) if isinstance(source, str) else source


def _named(source: Source) -> str:
    segment = _segment(source)
    if segment.start is None:
        return segment.path
    return f"{segment.path} at {segment.start:.2f} s"


def _encoded(text: str) -> bytes:
    """Text with the names of files in it, which may be any bytes."""
    return text.encode("utf-8", errors="surrogateescape")


def _clean(folder: Path) -> None:
    """Removes what killed processes left half written; what living ones write stays."""
    for path in folder.glob("*/.*.tmp.*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _lives(int(match[1])):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether a process runs; one that ended may stay listed where nobody asks how it ended."""
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True
    return "State:\tZ" not in status
