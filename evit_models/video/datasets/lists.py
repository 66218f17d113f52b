"""Videos by a list of paths and labels, or by a folder for every class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .base import DatasetError
from .files import Segment, VideoFiles, VideoOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["VIDEO_SUFFIXES", "VideoFolder", "VideoList", "read_list"]

#: Names of files that `VideoFolder` takes for videos; ``.npy`` are clips that were stored.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".npy",
)  # fmt: skip

_SEPARATORS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", " ": "a space"}
_LOOKED_AT = 20


class VideoList(VideoFiles):
    """Videos named in a text file, a ``path label`` a line.

    Path and label are separated by a tab, a comma, a semicolon or spaces, the same in all lines;
    which one is found out, and refused if unclear. A path in double quotes may hold any of them; a
    quote in it is written twice. Paths are relative to ``root``, by default the list's folder.
    Labels are class numbers from 0, or names if ``class_names`` are given. Empty lines are skipped.

    ``num_classes``: by default one more than the highest label, or the number of names. Options
    are those of `VideoFiles`.

    Raises: DatasetError, with the line, for a list that cannot be read so, for labels out of range,
    for a list without videos, and where none of the first videos exists.
    """

    def __init__(
        self,
        list_file: str | PathLike[str],
        root: str | PathLike[str] | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(**options)
        names = list(class_names) if class_names is not None else None
        if names is not None and num_classes is not None and num_classes != len(names):
            raise ValueError(
                f"VideoList: num_classes is {num_classes}, class_names has {len(names)}"
            )
        limit = len(names) if names is not None else num_classes
        entries = read_list(list_file, num_classes=limit, class_names=names)
        self.root = Path(list_file).parent if root is None else Path(root)
        self.paths = [path for path, _ in entries]
        self.labels: list[int] = [label for _, label in entries]
        self.num_classes: int = max(self.labels) + 1 if limit is None else limit
        self.class_names: list[str] | None = names
        self._set_length(len(entries))
        first = [self.segment(index).path for index in range(min(_LOOKED_AT, len(self)))]
        if not any(os.path.exists(path) for path in first):
            raise DatasetError(
                list_file, f"none of its first {len(first)} videos exists, such as {first[0]}; is "
                f"{self.root} the right root?"
            )  # fmt: skip

    def segment(self, index: int) -> Segment:
        """The whole file."""
        return Segment(os.path.join(self.root, self.paths[index]))


class VideoFolder(VideoFiles):
    """Videos in a folder for every class, at any depth below it.

    Classes are the folders in ``root`` by name, or ``class_names`` in that order, so that splits
    agree. Files whose names do not end like videos are left out.

    Options are those of `VideoFiles`. Raises: DatasetError for no classes, for folders
    that ``class_names`` lacks, and for no videos at all.
    """

    def __init__(
        self,
        root: str | PathLike[str],
        *,
        class_names: Sequence[str] | None = None,
        **options: Unpack[VideoOptions],
    ) -> None:
        super().__init__(**options)
        self.root = Path(root)
        if not self.root.is_dir():
            raise DatasetError(root, "is no folder, expected one with a folder for every class")
        folders = sorted(
            entry.name
            for entry in self.root.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        if not folders:
            raise DatasetError(root, "holds no folders, expected one for every class")
        names = folders if class_names is None else list(class_names)
        unknown = sorted(set(folders) - set(names))
        if unknown:
            raise DatasetError(root, f"holds a folder {unknown[0]!r} that class_names lacks")
        self.class_names: list[str] = names
        self.num_classes: int = len(names)
        self.paths: list[str] = []
        self.labels: list[int] = []
        for label, name in enumerate(names):
            found = _videos_below(self.root / name)
            self.paths += found
            self.labels += [label] * len(found)
        if not self.paths:
            raise DatasetError(
                root, f"holds no videos; their names end in {', '.join(VIDEO_SUFFIXES)}"
            )
        self._set_length(len(self.paths))

    def segment(self, index: int) -> Segment:
        """The whole file."""
        return Segment(self.paths[index])


def read_list(
    path: str | PathLike[str],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> list[tuple[str, int]]:
    """Paths and class numbers of a list, in its order; its form is that of `VideoList`.

    Raises: DatasetError, with the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(path, f"cannot be opened: {error.strerror}") from error
    except UnicodeDecodeError as error:
        where = error.object[: error.start].count(b"\n") + 1
        raise DatasetError(path, "is not UTF-8 text", where) from error
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DatasetError(path, "is empty, expected a path and a label in every line")
    numbers = {name: number for number, name in enumerate(class_names)} if class_names else None
    separator = _separator_of(path, lines, numbers)
    entries = []
    for number, line in lines:
        fields = _split(line, separator)
        if len(fields) != 2:
            many = "has no label" if len(fields) < 2 else f"has {len(fields)} fields"
            raise DatasetError(
                path,
                f"{many}, expected a path and a label separated by {_SEPARATORS[separator]}; a "
                "path that holds the separator goes in double quotes",
                number,
            )
        label = _label(path, fields[1], number, num_classes, numbers)
        entries.append((fields[0], label))
    return entries


def _separator_of(
    path: str | PathLike[str], lines: list[tuple[int, str]], numbers: dict[str, int] | None
) -> str:
    """The separator by which most lines are a path and a label; two that differ are refused."""
    scores = {}
    for separator in _SEPARATORS:
        split = [_split(line, separator) for _, line in lines]
        pairs = sum(len(fields) == 2 for fields in split)
        scores[separator] = (sum(_is_entry(fields, numbers) for fields in split), pairs)
    best = max(scores, key=scores.__getitem__)  # the first of equals: a tab before a space
    for other, score in scores.items():
        if other == best or score < scores[best] or not score[0]:
            continue
        for place, line in lines:
            if _split(line, best) != _split(line, other):
                raise DatasetError(
                    path,
                    f"could be separated by {_SEPARATORS[best]} or by {_SEPARATORS[other]}; put "
                    "the path in double quotes",
                    place,
                )
    return best


def _is_entry(fields: list[str], numbers: dict[str, int] | None) -> bool:
    if len(fields) != 2 or not fields[0]:
        return False
    return fields[1] in numbers if numbers else fields[1].lstrip("+-").isdecimal()


def _split(line: str, separator: str) -> list[str]:
    """Fields of a line; one that begins with a double quote ends at the quote that is not doubled.

    A space stands for any run of spaces and tabs.
    """
    fields = []
    rest = line
    while True:
        if rest.startswith('"'):
            quoted, rest = _unquote(rest)
            fields.append(quoted)
            rest = rest.lstrip(" \t") if separator == " " else rest.strip(" ")
            if separator != " " and rest:
                if not rest.startswith(separator):
                    return []
                rest = rest[len(separator) :].lstrip(" ")
        else:
            parts = rest.split(None if separator == " " else separator, 1)
            fields.append(parts[0].strip() if parts else "")
            rest = parts[1].strip(" \t") if len(parts) > 1 else ""
        if not rest:
            return fields


def _unquote(text: str) -> tuple[str, str]:
    """What stands between the quotes at the beginning, and what comes after them."""
    position = 1
    while True:
        end = text.find('"', position)
        if end < 0:
            return text, ""  # an open quote: the path is taken as it stands, and has no label
        if text[end + 1 : end + 2] != '"':
            return text[1:end].replace('""', '"'), text[end + 1 :]
        position = end + 2


def _label(
    path: str | PathLike[str],
    text: str,
    line: int,
    num_classes: int | None,
    numbers: dict[str, int] | None,
) -> int:
    if numbers is not None and text in numbers:
        return numbers[text]
    try:
        label = int(text)
    except ValueError:
        expected = "a class name or number" if numbers else "a class number"
        raise DatasetError(path, f"label is {text!r}, expected {expected}", line) from None
    if label < 0 or (num_classes is not None and label >= num_classes):
        top = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise DatasetError(path, f"label is {label}, expected {top}", line)
    return label


def _videos_below(folder: Path) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        found += [
            os.path.join(place, name)
            for name in sorted(files)
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith(".")
        ]
    return found
