"""Files that are no videos, or that want more than to be read."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from videos import encode, numbered_frame

from evit_models.video import (
    CorruptVideo,
    NotAVideo,
    RefusedVideo,
    VideoError,
    VideoNotFound,
    VideoTooLarge,
    VideoWarning,
    probe,
    read_frames,
    write_video,
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Another local video, which no other file may open."""
    return encode(tmp_path / "secret.mp4", 5)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
    "ffconcat after a byte order mark": "\ufeffffconcat version 1.0\nfile secret.mp4\n",
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "m3u8 with an absolute path": "#EXTM3U\n#EXTINF:1,\nfile://{folder}/secret.mp4\n",
    "dash": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>secret.mp4</BaseURL></MPD>',
}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.m3u8", "clip.ffconcat", "clip.webm"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_are_refused_under_any_name(
    kind: str, name: str, secret: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(PLAYLISTS[kind].format(folder=secret.parent), encoding="utf-8")
    with pytest.raises(RefusedVideo, match="names other files; refused"):
        probe(path)


@pytest.mark.parametrize(
    "text", ["# a comment\nfile secret.mp4\n", "secret.mp4\n", "v=0\no=- 0 0\n"]
)
def test_what_only_resembles_a_playlist_is_no_video_either(
    text: str, secret: Path, tmp_path: Path
) -> None:
    path = tmp_path / "clip.ffconcat"
    path.write_text(text)
    with pytest.raises(NotAVideo):
        probe(path)


@pytest.mark.parametrize(
    "name",
    ["concat:{secret}|{secret}", "subfile,,start,0,end,0,,:{secret}", "http://127.0.0.1:9/x.mp4",
     "data:video/mp4;base64,AAAA", "pipe:0", "crypto:{secret}"],
)  # fmt: skip
def test_a_path_is_never_a_protocol(name: str, secret: Path) -> None:
    with pytest.raises(VideoNotFound, match="no such file"):
        probe(name.format(secret=secret))


def test_a_colon_in_a_file_name_is_harmless(tmp_path: Path) -> None:
    path = encode(tmp_path / "plain.mp4", 3)
    odd = tmp_path / "concat:12:30 ü|%d.mp4"
    path.rename(odd)
    assert probe(odd).num_frames == 3


def test_missing_folder_empty_and_device(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFound, match="no such file"):
        probe(tmp_path / "missing.mp4")
    with pytest.raises(NotAVideo, match="is a folder"):
        probe(tmp_path)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(NotAVideo, match="is empty"):
        probe(empty)
    with pytest.raises(NotAVideo, match="not a regular file"):
        probe("/dev/zero")
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    with pytest.raises(NotAVideo, match="not a regular file"):
        probe(pipe)


CONTENTS = {
    "random bytes": np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes(),
    "text": b"root:x:0:0:root\n" * 40,
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "script": b"#!/bin/sh\necho hello\n",
    "zeros": bytes(4096),
    "archive": b"PK\x03\x04" + bytes(400),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_other_content_is_not_a_video(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(CONTENTS[kind])
    with pytest.raises(NotAVideo, match="is not a video in an accepted container"):
        probe(path)


@pytest.mark.parametrize("suffix", ["flv", "asf", "nut", "gif"])
def test_containers_outside_the_whitelist_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    codec = {"gif": "gif", "flv": "flv", "asf": "msmpeg4", "nut": "mpeg4"}[suffix]
    pixels = "rgb8" if suffix == "gif" else "yuv420p"
    write_video(path, [numbered_frame(i) for i in range(3)], codec=codec, pixel_format=pixels)
    with pytest.raises(NotAVideo, match="accepted container"):
        probe(path)


def test_sound_alone_is_not_a_video(tmp_path: Path) -> None:
    import av
    from videos import _tone

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac")
        for block in _tone(0.5):
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    with pytest.raises(NotAVideo, match="no video stream, only audio"):
        probe(path)


def test_a_file_without_its_index_is_corrupt(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", 60)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(CorruptVideo, match=r"cut\.mp4: looks like an MP4 .* index"):
        probe(cut)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "mkv", "avi"])
def test_a_header_alone_is_corrupt(suffix: str, tmp_path: Path) -> None:
    codec = "libvpx" if suffix == "webm" else "mpeg4"
    whole = encode(tmp_path / f"whole.{suffix}", 30, codec=codec)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[:40])
    with pytest.raises(CorruptVideo):
        probe(cut)


def test_frames_of_noise_are_corrupt(tmp_path: Path) -> None:
    path = encode(tmp_path / "noise.mp4", 30)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    (size,) = struct.unpack(">I", data[begin - 8 : begin - 4])
    data[begin : begin + size - 8] = np.random.default_rng(0).bytes(size - 8)
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptVideo, match="not a single frame"):
        probe(path)


def test_bits_flipped_anywhere_end_in_frames_or_in_a_typed_error(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", 20, options={"g": "5"}).read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "flipped.mp4"
    outcomes = set()
    for _ in range(60):
        data = bytearray(whole)
        for position in generator.integers(0, len(data), size=20):
            data[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(data))
        outcomes.add(_outcome(path))
    assert "frames" in outcomes
    assert len(outcomes) > 1, "damage in 20 places should have hit a header in 60 tries"


def _outcome(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        try:
            assert read_frames(path, times=[0.0, 0.3, 0.7]).shape[0] == 3
        except VideoError as error:
            return type(error).__name__
        return "frames"


def _announce_in_matroska(data: bytearray, width: int, height: int) -> None:
    struct.pack_into(">H", data, data.index(b"\xb0\x82") + 2, width)  # PixelWidth
    struct.pack_into(">H", data, data.index(b"\xba\x82") + 2, height)  # PixelHeight


def _announce_in_vp8(data: bytearray, width: int, height: int) -> None:
    start = data.index(b"\x9d\x01\x2a")  # start code of a key frame (RFC 6386, 9.1)
    struct.pack_into("<HH", data, start + 3, width, height)


def test_headers_that_announce_a_huge_frame_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "huge.webm", 3, codec="libvpx", size=(304, 272))
    data = bytearray(path.read_bytes())
    _announce_in_vp8(data, 16383, 8704)
    _announce_in_matroska(data, 16383, 8704)
    path.write_bytes(bytes(data))
    with pytest.raises(VideoTooLarge, match=r"16383 x 8704 = 142,597,632 pixels"):
        probe(path)
    # The container keeps quiet about it: the decoder refuses.
    _announce_in_matroska(data, 304, 272)
    path.write_bytes(bytes(data))
    with pytest.raises((VideoTooLarge, CorruptVideo)):
        probe(path)
    # The container lies and the codec does not.
    data = bytearray(
        encode(tmp_path / "liar.webm", 3, codec="libvpx", size=(304, 272)).read_bytes()
    )
    _announce_in_matroska(data, 16383, 8704)
    path.write_bytes(bytes(data))
    try:
        assert probe(path).width == 304
    except VideoTooLarge as error:
        assert "16383 x 8704" in str(error)  # noqa: PT017


def test_the_limit_is_the_callers(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", 3)
    with pytest.raises(VideoTooLarge, match=r"96 x 64 = 6,144 pixels exceed the limit of 6,143"):
        probe(path, max_pixels=96 * 64 - 1)
    assert probe(path, max_pixels=96 * 64).width == 96


def test_errors_tell_path_and_reason_and_survive_pickling(tmp_path: Path) -> None:
    with pytest.raises(VideoError) as caught:
        probe(tmp_path / "missing.mp4")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is VideoNotFound
    assert (again.path, again.reason) == (str(tmp_path / "missing.mp4"), "no such file")
    assert str(again) == f"{again.path}: {again.reason}"
