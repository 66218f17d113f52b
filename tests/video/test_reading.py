"""Every frame that is asked for is the frame that comes, in every container and codec."""

from __future__ import annotations

import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from videos import encode, number_of, numbered_frame, numbers_of, set_display_matrix

from evit_models.video import VideoReader, VideoWarning, probe, read_frames, write_video

GOP = {"g": "12"}
FILES = {
    "h264.mp4": {"options": {**GOP, "bf": "3"}},
    "h264-sound.mp4": {"options": GOP, "sound": True},
    "h264-open-gop.mp4": {"options": {"g": "10", "bf": "3", "x264-params": "open-gop=1"}},
    "h264-portrait.mp4": {"options": GOP, "size": (64, 96)},
    "h264.mkv": {"options": {**GOP, "bf": "2"}},
    "h264.ts": {"options": {**GOP, "bf": "2"}},
    "h264.avi": {"options": {**GOP, "bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": GOP},
    "mpeg4-b.avi": {"codec": "mpeg4", "options": {**GOP, "bf": "2"}},
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "options": {**GOP, "deadline": "realtime", "cpu-used": "8"},
    },
    "vp9-sound.webm": {
        "codec": "libvpx-vp9",
        "options": {**GOP, "deadline": "realtime", "cpu-used": "8"},
        "sound": True,
    },
    "vp9-portrait.webm": {
        "codec": "libvpx-vp9",
        "options": {**GOP, "deadline": "realtime", "cpu-used": "8"},
        "size": (64, 96),
    },
    # Hidden reference pictures: packets that show nothing.
    "vp8-altref.webm": {
        "codec": "libvpx",
        "options": {**GOP, "auto-alt-ref": "1", "lag-in-frames": "12", "cpu-used": "4"},
    },
    "vp9-live.webm": {
        "codec": "libvpx-vp9",
        "options": {**GOP, "deadline": "realtime", "cpu-used": "8"},
        "container_options": {"live": "1"},
    },
}


@pytest.fixture(scope="module", params=FILES)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("videos") / request.param
    return encode(path, **FILES[request.param])


def test_every_index_is_what_a_plain_reading_counts(video: Path) -> None:
    with VideoReader(video) as reader:
        plain = list(reader)
        assert numbers_of(plain) == list(range(60))
        for index in range(60):  # each one by a seek of its own
            (frame,) = reader.frames_by_index([index])
            assert np.array_equal(frame, plain[index]), index


def test_times_find_the_frame_on_screen(video: Path) -> None:
    order = np.random.default_rng(0).permutation(60)
    frames = read_frames(video, times=(order + 0.5) / 25)
    assert numbers_of(frames) == order.tolist()


def test_what_a_file_says_about_itself(video: Path) -> None:
    info = probe(video)
    width, height = FILES[video.name].get("size", (96, 64))
    assert (info.width, info.height, info.turned) == (width, height, False)
    assert info.num_frames == 60
    assert info.fps == pytest.approx(25, rel=0.02)
    assert info.duration == pytest.approx(60 / 25, abs=0.05)
    assert info.has_audio == ("sound" in video.name)


def test_mixed_order_repeats_and_threads_change_nothing(video: Path) -> None:
    wanted = [41, 3, 3, 59, 0, 12, 13, 41]
    one = read_frames(video, indices=wanted)
    two = read_frames(video, indices=wanted, threads=2)
    assert numbers_of(one) == wanted
    assert np.array_equal(one, two)


def test_variable_frame_rate_goes_by_time(tmp_path: Path) -> None:
    stamps = np.cumsum(np.random.default_rng(1).integers(10, 200, size=50)) - 10
    path = encode(
        tmp_path / "vfr.mkv", 50, stamps=stamps.tolist(), time_base=Fraction(1, 1000), options=GOP
    )
    with VideoReader(path) as reader:
        shown = reader.frame_times()
        assert shown == pytest.approx((stamps - stamps[0]) / 1000, abs=0.0011)
        probes = np.sort(np.random.default_rng(2).uniform(0, shown[-1], size=40))
        expected = np.searchsorted(shown, probes + 0.0005, side="right") - 1
        assert numbers_of(list(reader.frames_at(probes))) == expected.tolist()
        # Exactly when a frame appears, it is that frame.
        assert numbers_of(list(reader.frames_at(shown))) == list(range(50))


def test_times_outside_the_video_give_its_ends(tmp_path: Path) -> None:
    path = encode(tmp_path / "short.mp4", 5)
    assert numbers_of(read_frames(path, times=[-3.0, 0.0, 0.19, 0.2, 99.0, 1e30])) == [
        0, 0, 4, 4, 4, 4,
    ]  # fmt: skip


def test_an_index_past_the_end_repeats_the_last_frame_and_says_so(tmp_path: Path) -> None:
    path = encode(tmp_path / "short.mp4", 5)
    with pytest.warns(VideoWarning, match="has 5 frames, number 9"):
        assert numbers_of(read_frames(path, indices=[2, 9])) == [2, 4]


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    path = encode(tmp_path / "one.mp4", 1)
    assert probe(path).num_frames == 1
    assert numbers_of(read_frames(path, times=[0.0, 5.0])) == [0, 0]


# What phones write: quarter turns, and mirrors for the camera on the front.
TURNS = {
    "upright": ((1, 0, 0, 1), lambda image: image),
    "clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "upside down": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "counterclockwise": ((0, -1, 1, 0), lambda image: np.rot90(image)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_turned_the_way_they_are_shown(turn: str, tmp_path: Path) -> None:
    (a, b, c, d), expected = TURNS[turn]
    path = encode(tmp_path / "clip.mp4", 3)
    plain = read_frames(path, indices=[0, 1, 2])
    one = 1 << 16
    set_display_matrix(path, (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30))
    info = probe(path)
    assert (info.width, info.height) == ((64, 96) if b else (96, 64))
    assert info.turned == bool(b)
    for turned, upright in zip(read_frames(path, indices=[0, 1, 2]), plain, strict=True):
        assert np.array_equal(turned, expected(upright))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_the_clock_starts_at_the_first_frame(suffix: str, tmp_path: Path) -> None:
    stamps = [index * 40 + 400 for index in range(30)]
    path = encode(
        tmp_path / f"late.{suffix}", 30, stamps=stamps, time_base=Fraction(1, 1000), options=GOP
    )
    assert numbers_of(read_frames(path, times=[0.0, 0.42, 1.18])) == [0, 10, 29]
    assert probe(path).duration == pytest.approx(1.2, abs=0.05)


def test_frames_before_the_start_of_an_edit_list_do_not_count(tmp_path: Path) -> None:
    """An MP4 whose first ten frames have negative stamps: they are decoded, but never shown."""
    stamps = [index * 40 - 400 for index in range(30)]
    path = encode(
        tmp_path / "trimmed.mp4",
        30,
        stamps=stamps,
        time_base=Fraction(1, 1000),
        options={"bf": "2"},
        container_options={"avoid_negative_ts": "disabled"},
    )
    assert probe(path).num_frames == 20
    assert numbers_of(read_frames(path, times=[0.02, 0.42, 0.78])) == [10, 20, 29]
    assert numbers_of(read_frames(path, indices=[0, 10, 19])) == [10, 20, 29]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_only_what_lies_near_a_frame_is_decoded(suffix: str, tmp_path: Path) -> None:
    path = encode(tmp_path / f"long.{suffix}", 400, fps=5, options={"g": "10", "bf": "0"})
    with VideoReader(path) as reader:
        decoded = 0
        plain = reader._decoder._frames

        def counting(packet: object) -> object:
            nonlocal decoded
            frames = plain(packet)  # type: ignore[arg-type]
            decoded += len(frames)
            return frames

        reader._decoder._frames = counting  # type: ignore[method-assign, assignment]
        frames = list(reader.frames_at([0.5 / 5, 190.5 / 5, 395.5 / 5]))
    assert numbers_of(frames) == [0, 190, 395]
    assert decoded < 80, "three frames of 400, ten to a keyframe, need a few dozen"


_PEAK_MEMORY = """
import resource, sys
from evit_models.video import VideoReader
for path in sys.argv[1:]:
    with VideoReader(path) as reader:
        assert sum(1 for _ in reader) == reader.info.num_frames
        assert len(list(reader.frames_at([0.0, reader.info.duration]))) == 2
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path: Path) -> None:
    paths = [tmp_path / "short.mp4", tmp_path / "long.mp4"]
    for path, count in zip(paths, (50, 800), strict=True):
        frames = (numbered_frame(number, 256, 192) for number in range(count))
        write_video(path, frames, options={"preset": "ultrafast"})
    run = subprocess.run(
        [sys.executable, "-c", _PEAK_MEMORY, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    short, long = (int(line) / 1024 for line in run.stdout.split())
    # 800 frames of 147 kB each are 118 MB.
    assert long < short + 15, f"peak memory in MB: {short}, then {long}"


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9])
def test_a_truncated_file_gives_what_is_there(position: float, tmp_path: Path) -> None:
    whole = encode(
        tmp_path / "whole.mp4",
        100,
        options={**GOP, "bf": "0"},
        container_options={"movflags": "faststart"},
    )
    data = whole.read_bytes()
    begin = data.index(b"mdat")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: begin + int((len(data) - begin) * position)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = read_frames(cut, times=(np.arange(100) + 0.5) / 25)
    numbers = numbers_of(frames)
    last = max(numbers)
    assert 5 < last < 99
    assert numbers == [min(number, last) for number in range(100)]
    assert any("ends after" in str(w.message) for w in caught)
    # The same when the first wanted frame lies beyond the end.
    with pytest.warns(VideoWarning) as noticed:
        assert numbers_of(read_frames(cut, times=[3.9])) == [last]
    assert any("ends after" in str(w.message) for w in noticed)


def test_a_damaged_region_costs_its_frames_only(tmp_path: Path) -> None:
    path = encode(tmp_path / "damaged.mp4", 100, options={**GOP, "bf": "0"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(bytes(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        frames = read_frames(path, times=(np.arange(100) + 0.5) / 25)
    right = [number_of(frame) == index for index, frame in enumerate(frames)]
    assert all(right[:20])
    assert all(right[-20:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either indices or times"),
        ({"indices": [0], "times": [0.0]}, "either indices or times"),
        ({"indices": [-1]}, "not negative"),
        ({"times": [float("nan")]}, "finite"),
        ({"times": [[0.0]]}, "flat list"),
    ],
)
def test_bad_requests_are_refused(arguments: dict[str, object], words: str, tmp_path: Path) -> None:
    path = encode(tmp_path / "short.mp4", 3)
    with pytest.raises(ValueError, match=words):
        read_frames(path, **arguments)  # type: ignore[arg-type]


def test_write_video_and_back(tmp_path: Path) -> None:
    frames = np.stack([numbered_frame(number) for number in range(30)])
    for name in ("clip.mp4", "clip.webm", "clip.avi"):
        assert write_video(tmp_path / name, frames, 12.5) == 30
        info = probe(tmp_path / name)
        assert info.fps == pytest.approx(12.5, rel=0.05), name
        assert numbers_of(read_frames(tmp_path / name, indices=range(30))) == list(range(30)), name


@pytest.mark.parametrize(
    ("frames", "options", "words"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), {}, "at least one frame"),
        (np.zeros((2, 8, 8), np.uint8), {}, r"expected \(H, W, 3\)"),
        (np.zeros((2, 8, 8, 3), np.float32), {}, "uint8"),
        (np.zeros((2, 9, 8, 3), np.uint8), {}, "even width and height"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"codec": "nonsense"}, "no encoder"),
        (np.zeros((2, 8, 8, 3), np.uint8), {"fps": 0}, "positive"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], {}, "frame 1 has shape"),
    ],
)
def test_write_video_refuses(
    frames: object, options: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        write_video(tmp_path / "x.mp4", frames, **options)  # type: ignore[arg-type]
