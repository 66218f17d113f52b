"""Preparing a dataset: what comes out, and what goes wrong on the way, each by doing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from videos import encode, numbers_of

from evit_models.video import VideoReader, preparing
from evit_models.video.datasets import EpicKitchens, Segment, VideoList
from evit_models.video.datasets.files import open_footage
from evit_models.video.datasets.lists import read_list
from evit_models.video.preparing import (
    PrepareError,
    Recipe,
    loading_speed,
    prepare_table,
    prepare_videos,
)

SMALL = Recipe(short_side=48)


def _source(folder: Path, count: int = 3, frames: int = 20) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return [str(encode(folder / f"{n}.mp4", frames + n, size=(144, 96))) for n in range(count)]


def test_videos_become_small_and_keep_their_frames_and_labels(tmp_path: Path) -> None:
    paths = _source(tmp_path / "in")
    told: list[str] = []
    done = prepare_videos(
        paths, [2, 0, 1], tmp_path / "out", recipe=SMALL, processes=2, advance=told.append
    )
    assert (done.made, done.kept, done.bad, done.damaged, done.report) == (3, 0, [], [], None)
    assert sorted(told) == paths
    assert [label for _, label in read_list(done.list_file)] == [2, 0, 1]
    for n, (source, target) in enumerate(done.pairs):
        assert source == paths[n]
        with VideoReader(target) as reader, VideoReader(source) as original:
            assert (reader.info.width, reader.info.height) == (72, 48)
            assert reader.info.fps == original.info.fps
            small, large = np.stack(list(reader)), np.stack(list(original))
        assert len(small) == 20 + n
        # The cells of numbers are half as large now: look at them at the size they had.
        assert numbers_of(small.repeat(2, 1).repeat(2, 2)) == numbers_of(large)
    data = VideoList(done.list_file, training=False)
    assert all(data[index]["valid"] for index in range(3))
    assert [data[index]["label"] for index in range(3)] == [2, 0, 1]
    assert loading_speed([target for _, target in done.pairs], frames=4, short_side=48) > 0


def test_clips_are_stored_as_arrays_of_spread_frames(tmp_path: Path) -> None:
    paths = _source(tmp_path / "in", 1)
    done = prepare_videos(
        paths, [0], tmp_path / "out", recipe=Recipe(96, clip_frames=5), processes=1
    )
    clip = np.load(done.pairs[0][1])
    assert clip.shape == (5, 96, 144, 3)
    assert clip.dtype == np.uint8
    assert numbers_of(clip) == [2, 6, 10, 14, 18]
    assert VideoList(done.list_file, training=False)[0]["valid"]


def test_what_is_done_is_kept_until_its_source_or_the_recipe_changes(tmp_path: Path) -> None:
    paths, out = _source(tmp_path / "in"), tmp_path / "out"
    first = prepare_videos(paths, [0, 1, 2], out, recipe=SMALL, processes=1)
    again = prepare_videos(paths, [0, 1, 2], out, recipe=SMALL, processes=1)
    assert (again.made, again.kept, again.pairs) == (0, 3, first.pairs)
    encode(Path(paths[1]), 33, size=(144, 96))
    changed = prepare_videos(paths, [0, 1, 2], out, recipe=SMALL, processes=1)
    assert (changed.made, changed.kept) == (1, 2)
    assert prepare_videos(paths, [0, 1, 2], out, recipe=Recipe(64), processes=1).made == 3


def test_a_video_listed_twice_is_made_once(tmp_path: Path) -> None:
    path = _source(tmp_path / "in", 1)[0]
    done = prepare_videos([path, path], [0, 1], tmp_path / "out", recipe=SMALL, processes=1)
    assert done.made == 1
    (one, zero), (other, label) = read_list(done.list_file)
    assert (one == other, zero, label) == (True, 0, 1)


EPIC = """\
narration_id,participant_id,video_id,start_timestamp,stop_timestamp,verb_class,noun_class
P01_01_0,P01,P01_01,00:00:01.00,00:00:02.00,3,4
P01_01_1,P01,P01_01,00:00:02.50,00:00:04.00,10,4
P02_07_0,P02,P02_07,00:00:01.00,00:00:02.00,3,4
"""


def _numbers(segment: Segment) -> list[int]:
    with open_footage(segment) as footage:
        return numbers_of(list(footage.frames(np.arange(footage.total))))


@pytest.mark.parametrize("clip_frames", [None, 5])
def test_actions_of_a_table_get_files_of_their_own(tmp_path: Path, clip_frames: int | None) -> None:
    (tmp_path / "P01").mkdir()
    encode(tmp_path / "P01" / "P01_01.mp4", 120, size=(144, 96))
    (tmp_path / "P01" / "P01_01.mp4").rename(tmp_path / "P01" / "P01_01.MP4")
    table = tmp_path / "table.csv"
    table.write_text(EPIC)
    before = EpicKitchens(table, tmp_path, targets="verb")
    segments = {row.narration_id: before.segment(n) for n, row in enumerate(before.rows)}
    recipe = Recipe(96, clip_frames=clip_frames)
    done = prepare_table(table, segments, tmp_path / "out", recipe=recipe, processes=1)
    assert (done.made, done.kept) == (2, 0)
    ((bad, _),) = done.bad
    assert bad.endswith("P02_07.MP4 at 1.00 s")
    assert done.list_file.read_text() == EPIC, "which numbers the classes"
    after = EpicKitchens(done.list_file, tmp_path / "out", targets="verb")
    assert after.labels == before.labels
    for index in (0, 1):
        was, now = _numbers(before.segment(index)), _numbers(after.segment(index))
        assert Path(after.segment(index).path).parent == tmp_path / "out"
        assert now == was if clip_frames is None else len(now) == 5 and set(now) < set(was)
    assert loading_speed([source for source, _ in done.pairs], frames=4, short_side=48) > 0
    again = prepare_table(table, segments, tmp_path / "out", recipe=recipe, processes=1)
    assert (again.made, again.kept) == (0, 2)
    other = prepare_table(table, segments, tmp_path / "out", recipe=Recipe(48), processes=1)
    assert other.made == 2, "another recipe"
    with VideoReader(after.root / "P01_01_0.mp4") as reader:
        assert reader.info.height == 48


def test_killed_and_started_again_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    paths, out = _source(tmp_path / "in", 8, 200), tmp_path / "out"
    listing = tmp_path / "in" / "all.txt"
    listing.write_text("".join(f"{Path(path).name} {n}\n" for n, path in enumerate(paths)))
    command = [sys.executable, "-m", "evit_models.cli", "prepare", str(listing), str(out)]
    command += ["--short-side", "48", "--processes", "1"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    _wait_for(lambda: len(list(out.glob("videos/*/[!.]*.mp4"))) >= 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _wait_for(lambda: not any(preparing._lives(int(child)) for child in children))
    made = len(list(out.glob("videos/*/[!.]*.mp4")))
    assert 2 <= made < 8
    assert not (out / "all.txt").exists()
    stale = next(out.glob("videos/*")) / f".left-behind.{process.pid}.tmp.mp4"
    stale.write_bytes(b"half")
    done = prepare_videos(paths, range(8), out, name="all", recipe=SMALL, processes=1)
    assert (done.made, done.kept) == (8 - made, made)
    assert not list(out.glob("videos/*/.*"))
    for n, (_, target) in enumerate(done.pairs):
        with VideoReader(target) as reader:
            assert sum(1 for _ in reader) == 200 + n


def test_bad_videos_are_left_out_and_reported(tmp_path: Path) -> None:
    paths, out = _source(tmp_path / "in"), tmp_path / "out"
    Path(paths[1]).write_bytes(b"this is no video")
    paths.append(str(tmp_path / "in" / "missing.mp4"))
    done = prepare_videos(paths, [4, 5, 6, 7], out, recipe=SMALL, processes=1)
    assert [path for path, _ in done.bad] == [paths[1], paths[3]]
    assert [label for _, label in read_list(done.list_file)] == [4, 6]
    assert done.report is not None
    lines = done.report.read_text().splitlines()
    assert lines[0].startswith(f"{paths[1]}\tleft out\t")
    assert lines[1] == f"{paths[3]}\tleft out\tNo such file or directory"
    assert not list(out.glob("videos/*/.*"))
    encode(Path(paths[1]), 20, size=(144, 96))
    assert prepare_videos(paths[:3], [4, 5, 6], out, recipe=SMALL, processes=1).report is None
    assert not done.report.exists()


def test_without_any_readable_video_it_says_so(tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    with pytest.raises(PrepareError, match=r"none of 1 videos could be read; .*list\.bad\.txt"):
        prepare_videos([str(bad)], [0], tmp_path / "out", processes=1)
    assert not (tmp_path / "out" / "list.txt").exists()


def test_a_folder_that_cannot_be_written_ends_it_with_a_sentence(tmp_path: Path) -> None:
    paths = _source(tmp_path / "in", 1)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(PrepareError, match=r"file.*cannot be written: Not a directory"):
        prepare_videos(paths, [0], blocked / "out", processes=1)


@pytest.mark.parametrize("recipe", [SMALL, Recipe(48, clip_frames=4)])
def test_a_full_disk_ends_it_with_a_sentence(tmp_path: Path, recipe: Recipe) -> None:
    """Every file may be at most 512 bytes here, in the processes of the pool too."""
    import resource

    paths, out = _source(tmp_path / "in", 2), tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(PrepareError, match=r"cannot be written: .*File too large"):
            prepare_videos(paths, [0, 1], out, recipe=recipe, processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(out.glob("videos/*/*"))
    assert not (out / "list.txt").exists()
    assert prepare_videos(paths, [0, 1], out, recipe=recipe, processes=1).made == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"short_side": 8}, "short_side is 8, expected 16 or more"),
        ({"clip_frames": 0}, "clip_frames is 0, expected 1 or more"),
        ({"crf": 52}, "crf is 52, expected 0 to 51"),
    ],
)
def test_mistakes_in_a_recipe_are_named(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(**arguments)


def test_mistakes_in_a_call_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 sources, 2 labels"):
        prepare_videos(["a.mp4"], [0, 1], tmp_path)
    with pytest.raises(ValueError, match="processes is 0"):
        prepare_videos(["a.mp4"], [0], tmp_path, processes=0)


def _wait_for(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
