"""Lists and folders of videos: what is read, and which line a mistake is in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from videos import encode, numbers_of

from evit_models.video import ClipSampling, ClipTransform, TrainTransform
from evit_models.video.datasets import DatasetError, VideoFolder, VideoList
from evit_models.video.datasets.lists import read_list


def _list(folder: Path, text: str, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.mp4 0\nb/c.mp4 1\n", [("a.mp4", 0), ("b/c.mp4", 1)]),
        ("a.mp4\t 0\nb c.mp4\t1", [("a.mp4", 0), ("b c.mp4", 1)]),
        ("a b.mp4,0\r\nc d.mp4, 12\r\n", [("a b.mp4", 0), ("c d.mp4", 12)]),
        ("a,b.mp4;3\n\n  \nc.mp4;4\n", [("a,b.mp4", 3), ("c.mp4", 4)]),
        ('"a b, c;d.mp4" 5\nplain.mp4   6\n', [("a b, c;d.mp4", 5), ("plain.mp4", 6)]),
        ('"a b.mp4",5\nc.mp4 ,6\n', [("a b.mp4", 5), ("c.mp4", 6)]),
        ('"say ""hi"".mp4" 1\n', [('say "hi".mp4', 1)]),
        ('"a.mp4" "2"\n', [("a.mp4", 2)]),
        ("\ufeffä/ö.mp4 1\n", [("ä/ö.mp4", 1)]),
        ("a,1.mp4 7\n", [("a,1.mp4", 7)]),
        ("#a.mp4\t7", [("#a.mp4", 7)]),
    ],
)
def test_lists_of_every_kind(text: str, expected: list[tuple[str, int]], tmp_path: Path) -> None:
    assert read_list(_list(tmp_path, text)) == expected


def test_names_stand_for_numbers(tmp_path: Path) -> None:
    listing = _list(tmp_path, "a.mp4,open door\nb.mp4,1\nc.mp4,close\n")
    names = ["close", "open door"]
    assert read_list(listing, class_names=names, num_classes=2) == [
        ("a.mp4", 1), ("b.mp4", 1), ("c.mp4", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("a.mp4 0\nb.mp4\n", "line 2: has no label"),
        ("a.mp4 0\nb c.mp4 1\n", "line 2: has 3 fields, .* by a space; a path .* double quotes"),
        ("a.mp4,0\n\nb.mp4,x\n", "line 3: label is 'x', expected a class number"),
        ("a.mp4 0\nb.mp4 -1\n", "line 2: label is -1, expected 0 to 4"),
        ("a.mp4 0\nb.mp4 5\n", "line 2: label is 5, expected 0 to 4"),
        ("a.mp4 1.5\n", "line 1: label is '1.5'"),
        ('"a.mp4 0\n', "line 1: has no label"),
        ("a.mp4 0\n\xff\xfe.mp4 1\n", "line 2: is not UTF-8 text"),
    ],
)
def test_mistakes_in_a_list_are_refused_by_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=words) as caught:
        VideoList(path, num_classes=5)
    assert str(path) in str(caught.value)


def test_two_readings_of_one_line_are_refused(tmp_path: Path) -> None:
    listing = _list(tmp_path, "a;b,c\n")
    with pytest.raises(DatasetError, match="line 1: could be separated by a comma or by a semi"):
        read_list(listing, class_names=["c", "b,c"])


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be opened: No such file"):
        VideoList(tmp_path / "missing.txt")
    with pytest.raises(DatasetError, match=r"none of its first 2 videos exists, .*/no/a.mp4"):
        VideoList(_list(tmp_path, "a.mp4 0\nb.mp4 0\n"), tmp_path / "no")
    with pytest.raises(ValueError, match="num_classes is 3, class_names has 2"):
        VideoList(_list(tmp_path, "a.mp4 0\n"), num_classes=3, class_names=["a", "b"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("walk/one.mp4", "walk/deep/two.MP4", "run/three.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        encode(tmp_path / "v.mp4", 12)
        shutil.move(tmp_path / "v.mp4", tmp_path / name)
    (tmp_path / "run" / "notes.txt").write_text("not a video")
    (tmp_path / "run" / ".hidden.mp4").write_text("not a video")
    return tmp_path


def test_a_folder_for_every_class(folder: Path) -> None:
    data = VideoFolder(folder)
    assert data.class_names == ["run", "walk"]
    assert [Path(path).name for path in data.paths] == ["three.mp4", "one.mp4", "two.MP4"]
    assert data.labels == [0, 1, 1]
    chosen = VideoFolder(folder, class_names=["sit", "walk", "run"])
    assert chosen.labels == [1, 1, 2]
    assert chosen.num_classes == 3


def test_mistakes_in_a_folder(folder: Path) -> None:
    with pytest.raises(DatasetError, match="holds a folder 'run' that class_names lacks"):
        VideoFolder(folder, class_names=["walk"])
    with pytest.raises(DatasetError, match="is no folder"):
        VideoFolder(folder / "missing")
    with pytest.raises(DatasetError, match="holds no folders"):
        VideoFolder(folder / "run")
    (folder / "run" / "three.mp4").unlink()
    shutil.rmtree(folder / "walk")
    with pytest.raises(DatasetError, match="holds no videos; their names end in"):
        VideoFolder(folder)


def test_frames_come_from_where_sampling_says(tmp_path: Path) -> None:
    encode(tmp_path / "v.mp4", 40, options={"g": "8"})
    listing = _list(tmp_path, "v.mp4 2\n")
    spread = ClipSampling(4)
    whole = TrainTransform(size=64, scale=(1, 1), ratio=(1.5, 1.5))
    training = VideoList(listing, sampling=spread, transform=whole, seed=1)
    assert training.num_classes == 3
    sample = training[0]
    assert sample["video"].shape == (3, 4, 64, 64)
    assert sample["label"] == 2
    assert sample["source"].endswith("v.mp4")
    before = training[0]["video"]
    assert (before == sample["video"]).all()
    training.set_epoch(1)
    assert (training[0]["video"] != before).any()

    evaluation = VideoList(
        listing,
        sampling=ClipSampling(4, stride=2, views=3),
        transform=ClipTransform(size=64, crops=3),
        training=False,
    )
    views = evaluation[0]["video"]
    assert views.shape == (9, 3, 4, 64, 64)
    mean, std = (views.new_tensor(v).view(3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip  # noqa: E501
    # The left crop begins where the number of the frame is written.
    left = (views[0::3] * std + mean) * 255
    shown = [numbers_of(list(view.permute(1, 2, 3, 0).numpy())) for view in left]
    assert [[number % 256 for number in numbers] for numbers in shown] == [
        [0, 2, 4, 6], [16, 18, 20, 22], [33, 35, 37, 39],
    ]  # fmt: skip


def test_transforms_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    encode(tmp_path / "v.mp4", 4)
    listing = _list(tmp_path, "v.mp4 0\n")
    with pytest.raises(ValueError, match="transform and sampling give 3 views"):
        VideoList(listing, transform=ClipTransform(crops=3))
    with pytest.raises(ValueError, match="transform is that of training"):
        VideoList(listing, transform=TrainTransform(), training=False)
    with pytest.raises(ValueError, match="bad_limit is 2"):
        VideoList(listing, bad_limit=2)
    with pytest.raises(ValueError, match="ClipSampling: views is 0"):
        ClipSampling(4, views=0)
