"""The comparison of networks on motion: it runs, goes on where it ended, and becomes a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TINY = {"frames": 5, "size": 16, "motion_clips": 32, "epochs": 1}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return


def _compare(path: Path, said: list[str], seeds: int = 1, **setting: Any) -> dict[str, Any]:
    import motion

    return motion.compare(path, range(seeds), overrides=TINY, say=said.append, **setting)


def test_runs_go_on_where_they_ended_and_become_a_table(tmp_path: Path) -> None:
    import motion_table

    path, said = tmp_path / "motion.json", []
    result = _compare(path, said, test_clips=20)
    assert json.loads(path.read_text()) == result
    assert [run["who"] for run in result["runs"]] == ["ours", "original", "frames"]
    assert len({run["parameters"] for run in result["runs"]}) == 1
    assert all(run["steps"] == 2 and len(run["validation"]) == 1 for run in result["runs"])

    # A run that is missing is made again, with the same result; the others are not.
    again = {**result, "runs": [result["runs"][0], result["runs"][2]]}
    path.write_text(json.dumps(again))
    said.clear()
    repeated = _compare(path, said, test_clips=20)
    assert [text for text in said if "seed" in text] == ["original, seed 0"]
    assert repeated["runs"][2] == result["runs"][1]

    with pytest.raises(SystemExit, match="another setting"):
        _compare(path, said, test_clips=30)

    block = motion_table.table(path)
    assert "20 held-out clips of 5 frames of 16 x 16 pixels, after 2 steps of 16 clips" in block
    top1 = result["runs"][0]["top1"]
    assert f"| EfficientViT-3D b0, our defaults | **{100 * top1:.1f} %** |" in block
    assert "| always the commonest class | 10.0 % |" in block


def test_single_frames_see_every_frame_and_no_order() -> None:
    import motion

    from evit_models import create_model

    torch.manual_seed(0)
    model = create_model("efficientvit3d_b0", 4)
    clip = torch.randn(2, 3, 6, 32, 32)
    with torch.no_grad():
        # Fresh residual branches are multiplied by 0, and fresh norms have seen no data.
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.momentum = 1.0
        model(clip)
    model.eval()
    with torch.inference_mode():
        logits = motion.frame_by_frame(model, clip)
        shuffled = motion.frame_by_frame(model, clip[:, :, torch.randperm(6)])
        one = motion.frame_by_frame(model, clip[:, :, :1])
        assert not torch.allclose(model(clip), model(clip.flip(2)), rtol=1e-3)
        torch.testing.assert_close(one, model(clip[:, :, :1]))
    torch.testing.assert_close(logits, shuffled)
    assert not torch.allclose(logits, one, rtol=1e-3)


def test_the_table_is_put_between_its_markers(tmp_path: Path) -> None:
    import motion_table

    def run(who: str, seed: int, top1: float, steps: list[float]) -> dict[str, Any]:
        return {
            "who": who, "seed": seed, "top1": top1, "majority": 0.1, "steps": 30,
            "chance_without_order": 0.5, "kinds": {"speed": top1, "order": 1.0},
            "validation": [{"step": 10 * (i + 1), "top1": x} for i, x in enumerate(steps)],
        }  # fmt: skip

    content = {
        "setting": {
            "preset": {"frames": 8, "size": 48, "batch_size": 16},
            "test_clips": 500,
        },
        "datetime": "2000-01-02T03:04:05",
        "machine_info": {"cpu": "A CPU", "evit": "1", "torch": "2"},
        "runs": [
            run("ours", 0, 0.98, [0.5, 0.96, 0.97]),
            run("ours", 1, 1.0, [0.95, 0.9, 1.0]),
            run("original", 0, 0.7, [0.5, 0.96, 0.7]),
            run("original", 1, 0.7, [0.5, 0.6, 0.7]),
            run("frames", 0, 0.5, [0.5, 0.5, 0.5]),
        ],
    }
    path = tmp_path / "motion.json"
    path.write_text(json.dumps(content))
    text = f"before\n{motion_table.BEGIN}\nold\n{motion_table.END}\nafter\n"
    shown = motion_table.replaced(text, path)
    assert shown.startswith("before\n<!-- motion:begin -->\n500 held-out clips")
    assert shown.endswith("<!-- motion:end -->\nafter\n")
    assert "old" not in shown
    lines = shown.splitlines()
    ours = next(line for line in lines if "our defaults" in line)
    assert "| **99.0 %** (98.0 % to 100.0 %) | 99.0 % (98.0 % to 100.0 %) | 100.0 % |" in ours
    assert ours.endswith("| 240 (160 to 320) |")
    assert next(line for line in lines if "published" in line).endswith("| 1 of 2 runs |")
    assert next(line for line in lines if "single frames" in line).endswith("| never |")
    assert motion_table.replaced("no markers", path) == "no markers"
    with pytest.raises(SystemExit, match="lacks the marker"):
        motion_table.replaced(motion_table.BEGIN, path)
