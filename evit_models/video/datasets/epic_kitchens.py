"""EPIC-Kitchens-100: segments of long videos by a table, with verbs, nouns and actions."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .base import DatasetError
from .files import Segment, VideoFiles, VideoOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NOUNS", "VERBS", "EpicKitchens", "action_pairs", "read_table"]

#: How many classes of verbs and nouns there are.
VERBS, NOUNS = 97, 300

_TARGETS = ("verb", "noun", "action")
_COLUMNS = (
    "narration_id",
    "participant_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "verb_class",
    "noun_class",
)
# The tables whose union numbers the actions, if they lie beside the one that is read.
_OFFICIAL = ("EPIC_100_train.csv", "EPIC_100_validation.csv")


@dataclass(frozen=True)
class Row:
    """One action of the table; ``start`` and ``stop`` are in seconds."""

    narration_id: str
    participant_id: str
    video_id: str
    start: float
    stop: float
    verb: int
    noun: int


class EpicKitchens(VideoFiles):
    """Actions of EPIC-Kitchens-100 (arXiv 2006.13256), or of any table of its form.

    ``csv_file`` has a line of column names; needed are narration_id, participant_id, video_id,
    start_timestamp and stop_timestamp (hh:mm:ss.ff), verb_class and noun_class. Videos lie in
    ``root`` as ``PID/VID.MP4``, or ``PID/videos/VID.MP4``; where ``VID.MP4`` is a folder, it holds
    chunks of ``chunk_seconds``, named ``0.MP4``, ``15.MP4`` and so on. A file
    ``NARRATION_ID.mp4`` (or ``.npy``, a stored clip) in ``root`` goes before both.

    ``targets``: "verb", "noun" or "action" for one head, or several of them for a head each. An
    action is a pair of verb and noun; its number is its place among all pairs of ``action_csvs``,
    sorted as strings "verb:noun". These are the official tables of training and validation; by
    default they are looked for beside ``csv_file``. ``actions`` lists the pairs.

    Options are those of `VideoFiles`. Raises: DatasetError, with the line, for missing
    columns, times and classes that cannot be, and tables without a row.
    """

    def __init__(
        self,
        csv_file: str | PathLike[str],
        root: str | PathLike[str],
        *,
        targets: str | Sequence[str] = "action",
        action_csvs: Sequence[str | PathLike[str]] | None = None,
        chunk_seconds: int = 15,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(**options)
        heads = (targets,) if isinstance(targets, str) else tuple(targets)
        if not heads or len(set(heads)) != len(heads) or not set(heads) <= set(_TARGETS):
            raise ValueError(f"EpicKitchens: targets is {targets!r}, expected some of {_TARGETS}")
        if chunk_seconds < 1:
            raise ValueError(f"EpicKitchens: chunk_seconds is {chunk_seconds}, expected 1 or more")
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(root, "is no folder, expected the one that holds the videos")
        self.rows = [row for _, row in read_table(csv_file)]
        self.chunk_seconds = chunk_seconds
        self.actions: list[tuple[int, int]] = []
        if "action" in heads:
            self.actions = action_pairs(_action_tables(csv_file, action_csvs))
        self._label(csv_file, heads, single=isinstance(targets, str))
        self._set_length(len(self.rows))

    def segment(self, index: int) -> Segment:
        """A file of its own, a part of a video, or a part of a folder of chunks."""
        row = self.rows[index]
        for suffix in (".mp4", ".npy"):
            own = self.root / f"{row.narration_id}{suffix}"
            if own.exists():
                return Segment(str(own))
        path = self.root / row.participant_id / f"{row.video_id}.MP4"
        if not path.exists():
            nested = self.root / row.participant_id / "videos" / f"{row.video_id}.MP4"
            path = nested if nested.exists() else path
        chunks = self.chunk_seconds if path.is_dir() else None
        return Segment(str(path), row.start, row.stop, chunks)

    def _label(self, csv_file: str | PathLike[str], heads: tuple[str, ...], single: bool) -> None:
        number = {pair: index for index, pair in enumerate(self.actions)}
        labels: dict[str, list[int]] = {head: [] for head in heads}
        for line, row in read_table(csv_file):
            for head in heads:
                if head == "action":
                    pair = (row.verb, row.noun)
                    if pair not in number:
                        raise DatasetError(
                            csv_file,
                            f"has the verb {row.verb} with the noun {row.noun}, an action that no "
                            "table of action_csvs has",
                            line,
                        )
                    labels[head].append(number[pair])
                else:
                    labels[head].append(row.verb if head == "verb" else row.noun)
        counts = {"verb": VERBS, "noun": NOUNS, "action": len(self.actions)}
        self.labels = labels[heads[0]] if single else labels
        self.num_classes = counts[heads[0]] if single else {head: counts[head] for head in heads}
        self.class_names = None


def read_table(csv_file: str | PathLike[str]) -> list[tuple[int, Row]]:
    """The rows of a table and their lines, checked; see `EpicKitchens`."""
    rows = list(_rows(csv_file))
    if not rows:
        raise DatasetError(csv_file, "has no rows")
    return rows


def action_pairs(csv_files: Sequence[str | PathLike[str]]) -> list[tuple[int, int]]:
    """All (verb, noun) of some tables in the order of actions: as the strings "verb:noun"."""
    pairs = {(row.verb, row.noun) for table in csv_files for _, row in read_table(table)}
    return sorted(pairs, key=lambda pair: f"{pair[0]}:{pair[1]}")


def _action_tables(
    csv_file: str | PathLike[str], action_csvs: Sequence[str | PathLike[str]] | None
) -> Sequence[str | PathLike[str]]:
    if action_csvs is not None:
        if not action_csvs:
            raise ValueError("EpicKitchens: action_csvs is empty, expected at least one table")
        return action_csvs
    tables = [Path(csv_file).parent / name for name in _OFFICIAL]
    missing = [table.name for table in tables if not table.exists()]
    if missing:
        raise DatasetError(
            csv_file,
            f"actions are numbered by {' and '.join(_OFFICIAL)}, but {missing[0]} is not beside "
            "it; say which tables number them (action_csvs)",
        )
    return tables


def _rows(csv_file: str | PathLike[str]) -> Iterator[tuple[int, Row]]:
    try:
        with open(csv_file, encoding="utf-8-sig", newline="") as file:
            table = csv.reader(file, strict=True)
            header = [name.strip() for name in next(table, [])]
            missing = [name for name in _COLUMNS if name not in header]
            if missing:
                raise DatasetError(
                    csv_file,
                    f"lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
                    1,
                )
            places = [header.index(name) for name in _COLUMNS]
            for fields in table:
                if any(field.strip() for field in fields):
                    yield table.line_num, _row(csv_file, table.line_num, fields, places)
    except csv.Error as error:
        raise DatasetError(csv_file, f"is no table: {error}", table.line_num) from error
    except UnicodeDecodeError as error:
        raise DatasetError(csv_file, "is not UTF-8 text") from error
    except OSError as error:
        raise DatasetError(csv_file, f"cannot be opened: {error.strerror}") from error


def _row(csv_file: str | PathLike[str], line: int, fields: list[str], places: list[int]) -> Row:
    if len(fields) <= max(places):
        raise DatasetError(
            csv_file, f"has {len(fields)} fields, expected {max(places) + 1} or more", line
        )
    narration, participant, video, start, stop, verb, noun = (fields[i].strip() for i in places)
    for name, value in zip(_COLUMNS, (narration, participant, video), strict=False):
        # They become names of files below the root.
        if not value or os.path.basename(value) != value or value.startswith("."):
            raise DatasetError(csv_file, f"{name} is {value!r}, expected a plain name", line)
    begin = _seconds(csv_file, line, "start_timestamp", start)
    end = _seconds(csv_file, line, "stop_timestamp", stop)
    if end <= begin:
        raise DatasetError(csv_file, f"stop_timestamp {stop} is not after start {start}", line)
    return Row(
        narration,
        participant,
        video,
        begin,
        end,
        _class(csv_file, line, "verb_class", verb, VERBS),
        _class(csv_file, line, "noun_class", noun, NOUNS),
    )


def _seconds(csv_file: str | PathLike[str], line: int, column: str, text: str) -> float:
    match = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d*)?)", text)
    if match is None:
        raise DatasetError(csv_file, f"{column} is {text!r}, expected hh:mm:ss.ff", line)
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _class(csv_file: str | PathLike[str], line: int, column: str, text: str, count: int) -> int:
    if not text.isdecimal() or int(text) >= count:
        raise DatasetError(csv_file, f"{column} is {text!r}, expected 0 to {count - 1}", line)
    return int(text)
