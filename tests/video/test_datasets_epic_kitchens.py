"""EPIC-Kitchens tables: labels by their rules, segments by their times, mistakes by their line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from videos import encode, numbers_of

from evit_models.video import ClipSampling, ClipTransform
from evit_models.video.datasets import DatasetError, EpicKitchens
from evit_models.video.datasets.epic_kitchens import action_pairs
from evit_models.video.datasets.files import open_footage

HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
    "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns"
)
TIMES = "00:00:00.00,00:00:02.00,00:00:04.00,1,2"


def _row(number: int, verb: object, noun: object, times: str = TIMES) -> str:
    return f'P01_01_{number},P01,P01_01,{times},"a, b",x,{verb},y,{noun},[]'


def _table(folder: Path, *rows: str, name: str = "table.csv", header: str = HEADER) -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def _frames(data: EpicKitchens, index: int) -> list[int]:
    with open_footage(data.segment(index)) as footage:
        numbers = data.sampling.all_views(footage.total)[0]
        return numbers_of(list(footage.frames(numbers)))


def test_actions_are_sorted_as_strings_over_all_tables(tmp_path: Path) -> None:
    train = _table(tmp_path, _row(0, 10, 2), _row(1, 2, 30), name="EPIC_100_train.csv")
    _table(tmp_path, _row(0, 2, 4), _row(1, 10, 2), name="EPIC_100_validation.csv")
    data = EpicKitchens(train, tmp_path)
    assert data.actions == [(10, 2), (2, 30), (2, 4)]
    assert data.labels == [0, 1]
    assert data.num_classes == 3
    assert action_pairs([train]) == [(10, 2), (2, 30)]
    heads = EpicKitchens(train, tmp_path, targets=("verb", "noun"))
    assert heads.labels == {"verb": [10, 2], "noun": [2, 30]}
    assert heads.num_classes == {"verb": 97, "noun": 300}
    assert EpicKitchens(train, tmp_path, targets="noun").labels == [2, 30]


def test_segments_of_whole_videos(tmp_path: Path) -> None:
    (tmp_path / "P01").mkdir()
    encode(tmp_path / "P01" / "P01_01.mp4", 150, options={"g": "10"})
    (tmp_path / "P01" / "P01_01.mp4").rename(tmp_path / "P01" / "P01_01.MP4")
    table = _table(tmp_path, _row(0, 1, 1))
    data = EpicKitchens(
        table, tmp_path, targets="verb", sampling=ClipSampling(5), training=False,
        transform=ClipTransform(size=16),
    )  # fmt: skip
    assert _frames(data, 0) == [55, 65, 75, 85, 95]  # 50 frames from the 50th on
    assert data[0]["video"].shape == (1, 3, 5, 16, 16)
    assert data[0]["label"] == 1


def test_segments_across_chunks_are_those_of_the_whole(tmp_path: Path) -> None:
    folder = tmp_path / "P01" / "P01_01.MP4"
    folder.mkdir(parents=True)
    for chunk in range(3):
        encode(folder / f"{2 * chunk}.mp4", 50)
        (folder / f"{2 * chunk}.mp4").rename(folder / f"{2 * chunk}.MP4")
    times = "0,00:00:01.00,00:00:05.00,1,2"
    data = EpicKitchens(
        _table(tmp_path, _row(0, 1, 1, times)), tmp_path, targets="verb", chunk_seconds=2,
        sampling=ClipSampling(10),
    )  # fmt: skip
    whole = 25 + 10 * np.arange(10) + 5
    assert _frames(data, 0) == (whole % 50).tolist()


def test_a_file_of_its_own_goes_first(tmp_path: Path) -> None:
    encode(tmp_path / "P01_01_0.mp4", 10)
    data = EpicKitchens(_table(tmp_path, _row(0, 1, 1)), tmp_path, targets="verb")
    assert data.segment(0).start is None
    assert data[0]["valid"]


def test_a_segment_after_the_end_is_bad_and_a_missing_video_too(tmp_path: Path) -> None:
    (tmp_path / "P01").mkdir()
    encode(tmp_path / "P01" / "x.mp4", 25).rename(tmp_path / "P01" / "P01_01.MP4")
    other = _row(1, 1, 1).replace("P01_01,", "P01_02,")
    data = EpicKitchens(
        _table(tmp_path, _row(0, 1, 1), other), tmp_path, targets="verb", training=False
    )
    assert "before the segment at 2.00 s" in data[0]["error"]
    assert "no such file" in data[1]["error"]


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([], HEADER, "has no rows"),
        ([_row(0, 1, 1)], "narration_id,video_id", "line 1: lacks the columns participant_id, st"),
        ([_row(0, 1, 1), _row(1, 97, 1)], HEADER, "line 3: verb_class is '97', expected 0 to 96"),
        ([_row(0, 1, -1)], HEADER, "line 2: noun_class is '-1', expected 0 to 299"),
        ([_row(0, 1, 1, "0,0:00,00:00:01.00,1,2")], HEADER, "start_timestamp is '0:00'"),
        ([_row(0, 1, 1, "0,00:00:02,00:00:01,1,2")], HEADER, "line 2: stop_timestamp .* not after"),
        (["P01_01_0,P01"], HEADER, "line 2: has 2 fields, expected 13 or more"),
        ([_row(0, 1, 1).replace("P01,", "../P01,", 1)], HEADER, "expected a plain name"),
    ],
)
def test_mistakes_are_refused_by_line(
    rows: list[str], header: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=words):
        EpicKitchens(_table(tmp_path, *rows, header=header), tmp_path, targets="verb")


def test_actions_need_their_tables(tmp_path: Path) -> None:
    table = _table(tmp_path, _row(0, 1, 1), _row(1, 2, 2))
    with pytest.raises(DatasetError, match=r"EPIC_100_train.csv is not beside"):
        EpicKitchens(table, tmp_path)
    other = _table(tmp_path, _row(0, 1, 1), name="other.csv")
    with pytest.raises(DatasetError, match="line 3: has the verb 2 with the noun 2"):
        EpicKitchens(table, tmp_path, action_csvs=[other])
    with pytest.raises(ValueError, match="targets is 'adverb'"):
        EpicKitchens(table, tmp_path, targets="adverb")
    with pytest.raises(DatasetError, match="is no folder"):
        EpicKitchens(table, tmp_path / "missing", targets="verb")
