"""What docs/training.md says holds: its commands run, and its keys are those of the code.

`python tests/test_docs_training.py` writes the keys into the page.
"""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from evit_models import load_model
from evit_models.cli import main
from evit_models.training import TrainConfig
from evit_models.training.config import FREE_ON_RESUME
from evit_models.video.datasets import MotionClips

PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
README = PAGE.parent.parent / "README.md"
BEGIN, END = "<!-- keys:begin -->", "<!-- keys:end -->"
# What makes the page's command quick here; a later option wins.
QUICK = "--model efficientvit3d_b0 --frames 5 --size 32 --epochs 2 --batch-size 4 --workers 0"


def keys() -> str:
    """The part of the page that lists the keys, from the docstring of `TrainConfig`."""
    text = (TrainConfig.__doc__ or "").split("Args:\n", 1)[1]
    entries = re.findall(r"^ {8}(\S.*(?:\n {12}\S.*)*)", text, re.MULTILINE)
    defaults = asdict(TrainConfig())
    lines = []
    for entry in entries:
        words = " ".join(entry.split())
        named = [key for key in defaults if re.search(rf"(^|[,;.] ){key}[,:]", words)]
        values = ", ".join(f"`{key} = {_toml(defaults.pop(key))}`" for key in named)
        assert named, entry
        lines.append(f"- {values}: {words.partition(': ')[2]}")
    assert not defaults, f"without an entry: {list(defaults)}"
    return "\n".join(lines)


def page() -> str:
    """The page as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{keys()}\n{END}{after}"


def five_lines() -> str:
    """The commands that lead from a folder of videos to trained weights."""
    block = PAGE.read_text(encoding="utf-8").split("<!-- five-lines -->\n```bash\n", 1)[1]
    return block.split("```", 1)[0]


def test_keys_and_defaults() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_keys_that_may_change() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (named,) = re.findall(r"Keys that do not change the result may\s+change[^:]*: ([^.]*)\.", text)
    assert set(re.findall(r"`(\w+)`", named)) == FREE_ON_RESUME


def test_five_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The commands of the page, word for word, on tiny videos."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    clips = MotionClips("train", 12, 5, 32, kinds=("depth", "order"))
    clips.write("made")
    for number, label in enumerate(clips.labels):
        folder = Path("videos", "train" if number < 8 else "test", clips.class_names[label])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"made/{number:05d}.mp4", folder)
    shutil.copy("made/00000.mp4", "clip.mp4")
    lines = five_lines()
    assert lines in README.read_text(encoding="utf-8"), "the README shows other lines"
    commands = lines.replace("\\\n", " ").strip().splitlines()
    assert [shlex.split(command)[1] for command in commands] == [
        "prepare", "prepare", "train", "eval", "classify",
    ]  # fmt: skip
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "evit"
        extra = QUICK.split() if words[0] == "train" else []
        assert main([*words, *extra]) == 0, capfd.readouterr().err
    assert any(name in capfd.readouterr().out for name in clips.class_names)
    assert load_model("runs/mine").default_cfg["class_names"] == sorted(clips.class_names)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
