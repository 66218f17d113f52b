"""What an evaluation leaves on the disk: figures, predictions, and who was taken for whom."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evit_models.durable import write_durably
from evit_models.training.errors import TrainingError
from evit_models.training.evaluation import Evaluation
from evit_models.training.metrics import Ints, confusion_matrix
from evit_models.training.objective import SINGLE

FIGURES_FILE, PREDICTIONS = "figures.json", "predictions"
FORMATS = ("jsonl", "csv")

#: A matrix of more classes than this is written without those that occur nowhere.
_MOST_CLASSES = 1000
_BEST = 5

#: Names of the classes of every head, None where they only have numbers.
Names = Mapping[str, Sequence[str] | None]


def write_results(
    folder: Path,
    found: Evaluation,
    facts: Mapping[str, Any],
    names: Names,
    *,
    form: str = "jsonl",
    ids: Sequence[str] | None = None,
) -> list[Path]:
    """Writes the files of an evaluation and returns their paths.

    ``figures.json`` has `facts`. ``predictions.jsonl`` or ``.csv`` has, for every video and head,
    its number, source, label, and the five classes with the highest probabilities.
    ``confusion.csv`` and ``confusion.png`` (``confusion-HEAD`` where there are several heads) count
    how often videos of the row's class were given the column's.

    Args:
        form: one of `FORMATS`.
        ids: a name of every clip of the dataset, where it has one besides its source.

    Raises:
        TrainingError: the folder cannot be written.
    """
    from evit_models.training.charts import save_confusion

    rows = list(_rows(found, names, ids))
    text = _json_lines(rows) if form == "jsonl" else _table(rows)
    written = [folder / FIGURES_FILE, folder / f"{PREDICTIONS}.{form}"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for other in FORMATS:  # what an earlier evaluation left would not belong to these figures
            (folder / f"{PREDICTIONS}.{other}").unlink(missing_ok=True)
        write_durably(written[0], json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n")
        write_durably(written[1], text.encode())
        for head, size in found.sizes.items():
            matrix = confusion_matrix(found.videos[head], size)
            labels = list(names[head] or map(str, range(size)))
            if size > _MOST_CLASSES:
                occurs = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
                matrix = matrix[np.ix_(occurs, occurs)]
                labels = [labels[number] for number in occurs]
            stem = "confusion" if list(found.sizes) == [SINGLE] else f"confusion-{head}"
            written += [folder / f"{stem}.csv", folder / f"{stem}.png"]
            write_durably(written[-2], _matrix_table(matrix, labels).encode())
            save_confusion(matrix, written[-1], class_names=labels)
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error.strerror or error}") from error
    return written


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of ``predictions.jsonl`` or ``predictions.csv``: "head", "label", "class".

    "class" is the best of the five. Raises: ValueError for another file, with its line.
    """
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file) if path.suffix == ".csv" else map(_json_row, file)
        for number, line in enumerate(lines, 2 if path.suffix == ".csv" else 1):
            try:
                best = line["class1"] if path.suffix == ".csv" else line["top5"][0]["class"]
                row = {"head": line["head"], "label": int(line["label"]), "class": int(best)}
            except (KeyError, IndexError, TypeError, ValueError):
                raise ValueError(
                    f"{path}, line {number}: is no prediction as evit eval writes them"
                ) from None
            rows.append(row)
    return rows


def most_confused(matrix: Ints, count: int = 5) -> list[tuple[int, int, int]]:
    """Returns the commonest mistakes as (true class, predicted class, how often)."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    return [(row, column, int(wrong[row, column])) for row, column in pairs if wrong[row, column]]


def _rows(found: Evaluation, names: Names, ids: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    for head in found.sizes:
        called, said = names[head], found.videos[head]
        for index, label, best, shares in zip(
            said.index.tolist(),
            said.label.tolist(),
            said.best.tolist(),
            said.shares.tolist(),
            strict=True,
        ):
            yield {
                "index": index,
                **({"id": ids[index]} if ids else {}),
                "source": found.sources[index],
                "head": head,
                "label": label,
                "name": called[label] if called else None,
                "top5": [
                    {
                        "class": number,
                        "name": called[number] if called else None,
                        "probability": float(f"{share:.6g}"),
                    }
                    for number, share in zip(best, shares, strict=True)
                ],
            }


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json_row(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same rows as CSV: class1, name1, probability1 and so on in place of "top5"."""
    file = io.StringIO()
    plain = [key for key in (rows[0] if rows else {}) if key != "top5"]
    best = [f"{key}{n}" for n in range(1, _BEST + 1) for key in ("class", "name", "probability")]
    table = csv.DictWriter(file, [*plain, *best], lineterminator="\n")
    table.writeheader()
    for row in rows:
        cells = {key: row[key] for key in plain}
        for place, one in enumerate(row["top5"], 1):
            cells.update({f"{key}{place}": value for key, value in one.items()})
        table.writerow(cells)
    return file.getvalue()


def _matrix_table(matrix: Ints, labels: Sequence[str]) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["true \\ predicted", *labels])
    table.writerows([label, *row] for label, row in zip(labels, matrix.tolist(), strict=True))
    return file.getvalue()
