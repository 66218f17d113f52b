"""Benchmarks of GPUs where there is none: tried on the CPU; their table from made-up numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return


def _pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest from a folder without sources: ``-m`` would find the bare ones before those
    that are installed with their kernels."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark-only"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, cwd=ROOT / "tests", timeout=500
    )


def test_without_a_gpu_there_are_no_benchmarks_of_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device")
    listed = _pytest(str(BENCHMARKS), "--collect-only", "-q")
    assert "bench_gpu" not in listed.stdout
    assert "bench_models" in listed.stdout
    header = _pytest(str(BENCHMARKS / "bench_memory.py"), "--collect-only").stdout
    assert "no benchmarks of GPUs: torch sees no CUDA device" in header


def test_operators_from_cases_to_the_table(tmp_path: Path) -> None:
    path = tmp_path / "trial.json"
    files = [str(BENCHMARKS / f"bench_gpu_{name}.py") for name in (
        "depthwise_conv3d", "relu_linear_attention")]  # fmt: skip
    tiny = ("--device", "cpu", "--shapes", "tiny", "--quick", f"--benchmark-json={path}")
    done = _pytest(*files, *tiny)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "GPU benchmarks: 16 groups, about" in done.stdout
    content = json.loads(path.read_text())
    info = content["benchmarks"][0]["extra_info"]
    assert {"row", "case", "peer", "model", "stage", "batch", "dtype", "bytes"} <= set(info)
    import gpu_table

    shown = gpu_table.table([(path, content)])
    assert "depthwise 3x3x3, bias, hardswish, stages 0 to 2, batch >= 8 | ours" in shown
    assert "attention over two scales, forward, batch 64 | ours" in shown


def test_networks_from_one_file_to_the_table(tmp_path: Path) -> None:
    path = tmp_path / "trial.json"
    tiny = ("--device", "cpu", "--shapes", "tiny", "--quick", f"--benchmark-json={path}")
    # On a CPU, PyTorch's convolutions in bfloat16 take their time.
    done = _pytest(str(BENCHMARKS / "bench_gpu_models.py"), *tiny, "--peers", "none")
    assert done.returncode == 0, done.stdout[-3000:]
    rows = {entry["extra_info"]["peer"] for entry in json.loads(path.read_text())["benchmarks"]}
    assert rows == {"ours", "ours, captured graph"}


def test_who_cannot_do_the_work_is_absent_unless_it_is_ours() -> None:
    import gpu_peers

    right, wrong = torch.ones(3), torch.full((3,), 2.0)

    def fail() -> Any:
        raise ValueError("not for\nthis shape")

    calls = gpu_peers.checked(
        {"ours": lambda: lambda: right, "one": lambda: lambda: wrong, "two": fail},
        lambda: right.double(),
        1e-3,
        "case",
    )
    assert calls["one"] == (
        "AssertionError: case, one, result 0: relative error 1.0e+00 exceeds 1.0e-03"
    )
    assert calls["two"] == "ValueError: not for this shape"
    with pytest.raises(AssertionError, match="case, ours, result 0"):
        gpu_peers.checked({"ours": lambda: lambda: wrong}, lambda: right.double(), 1e-3, "case")


def test_triton_is_a_peer_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_peers

    monkeypatch.setattr(gpu_peers, "available_backends", lambda *_: ("reference", "triton"))
    assert gpu_peers.peers_of("relu_linear_attention", "cuda")[:2] == [
        "ours Triton",
        "PyTorch NCDHW",
    ]
    monkeypatch.setattr(gpu_peers, "available_backends", lambda *_: ("native", "triton"))
    names = gpu_peers.peers_of("depthwise_conv3d", "cuda")
    assert names[:3] == ["ours", "ours NCDHW", "ours Triton"]


def test_a_spent_budget_skips_what_is_left() -> None:
    done = _pytest(
        str(BENCHMARKS / "bench_gpu_relu_linear_attention.py"),
        *("--device", "cpu", "--shapes", "tiny", "--quick", "--budget", "-1", "-rs"),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "the budget of -1 s is spent (--budget)" in done.stdout


def _entry(row: str, case: str, peer: str, seconds: list[float], **facts: Any) -> dict[str, Any]:
    info = {"row": row, "case": case, "peer": peer, "model": "b1", "stage": 1, "batch": 8,
            "dtype": "bfloat16", "kernel": [3, 3, 3], "frames": 8, **facts}  # fmt: skip
    return {"extra_info": info, "stats": {"data": seconds}}


def _content(entries: list[dict[str, Any]], date: str = "2030-01-02") -> dict[str, Any]:
    machine = {"gpu": "NVIDIA H200", "driver": "1.2", "cuda": "13.0", "cudnn": 9, "torch": "2.11",
               "evit": "0.1.0", "gpu_float32_flops": 1e12}  # fmt: skip
    return {"machine_info": machine, "datetime": f"{date}T10:00:00", "benchmarks": entries}


def _operator(row: str, times: dict[str, float], **facts: Any) -> list[dict[str, Any]]:
    return [_entry(row, "one", peer, [t, 2 * t], **facts) for peer, t in times.items()]


def test_shares_and_ratios_of_made_up_times() -> None:
    import gpu_table

    row = "gpu depthwise_conv3d forward"
    times = {"ours": 1.0, "ours Triton": 1.5, "PyTorch NCDHW": 9.0,
             "PyTorch channels_last_3d": 1.9, "torch.compile": 4.0, "copy": 0.8}  # fmt: skip
    shown = gpu_table.table([(Path("a.json"), _content(_operator(row, times)))])
    assert "NVIDIA H200, driver 1.2, CUDA 13.0, cuDNN 9, torch 2.11" in shown
    assert (
        "| depthwise 3x3x3, bias, hardswish, stages 0 to 2, batch >= 8 | ours | **80 %** [75 %] "
        "| **9.00x** [8x] | 1.90x [2x, missed]: PyTorch channels_last_3d |"
    ) in shown
    # Late stages, small batches and other dtypes are none of its cases.
    for facts in ({"stage": 3}, {"batch": 1}, {"dtype": "float32"}):
        assert "depthwise 3x3x3, bias" not in gpu_table.table(
            [(Path("a.json"), _content(_operator(row, times, **facts)))]
        )
    # 5x5x5: 0.6e12 operations in a second, of 1e12 that the device can do.
    wide = gpu_table.table(
        [(Path("a.json"), _content(_operator(row, times, kernel=[5, 5, 5], flops=9e11)))]
    )
    assert "| ours | **60 %** [55 %] |" in wide  # the median of 0.9 in 1 s and in 2 s


def test_graphs_and_memory_of_networks() -> None:
    import gpu_table

    entries = _operator(
        "gpu model forward",
        {"ours": 4.0, "ours, captured graph": 1.0, "PyTorch NCDHW": 10.0,
         "PyTorch NCDHW, captured graph": 3.0, "torch.compile": 6.0},
        batch=1,
    )  # fmt: skip
    entries += [
        _entry("gpu model training step", "step", "ours", [1.0], batch=64, peak_bytes=[50]),
        _entry("gpu model training step", "step", "PyTorch NCDHW", [5], batch=64, peak_bytes=[100]),
    ]
    shown = gpu_table.table([(Path("a.json"), _content(entries))])
    assert "| b1 forward, batch 1 | ours |  | 2.50x | 1.50x: torch.compile |" in shown
    assert "batch 1, captured graph | ours |  | **10.00x** [8x] | **3.00x** [2x]: PyTorch" in shown
    assert "| peak memory of that step | ours |  | **0.50x** [0.6x] |" in shown


def test_the_readme_gets_a_gpu_table_only_when_there_is_a_result() -> None:
    import gpu_table

    text = "before\n<!-- benchmarks:end -->\nafter\n"
    end = "<!-- benchmarks:end -->"
    assert gpu_table.replaced(text, None, after=end) == text
    once = gpu_table.replaced(text, "NUMBERS", after=end)
    assert once == (f"before\n{end}\n\n{gpu_table.BEGIN}\nNUMBERS\n{gpu_table.END}\nafter\n")
    assert gpu_table.replaced(once, "OTHERS", after=end) == once.replace("NUMBERS", "OTHERS")


def test_parts_of_the_newest_run_are_joined_and_the_cpu_keeps_its_own(tmp_path: Path) -> None:
    import gpu_table
    import readings

    cpu = _content([_entry("depthwise_conv3d forward", "one", "ours", [1.0])], "2030-05-05")
    parts = {
        "old.json": _content(_operator("gpu model forward", {"ours": 1.0}), "2029-01-01"),
        "one.json": _content(_operator("gpu depthwise_conv3d forward", {"ours": 1.0})),
        "two.json": _content(_operator("gpu model forward", {"ours": 1.0})),
        "cpu.json": cpu,
    }
    for name, content in parts.items():
        (tmp_path / name).write_text(json.dumps(content))
    results = readings.all_results(tmp_path)
    assert [path.name for path, _ in results] == ["old.json", "one.json", "two.json", "cpu.json"]
    assert sorted(path.name for path, _ in gpu_table.newest(results)) == ["one.json", "two.json"]
    assert gpu_table.newest([results[-1]]) == []


def test_cases_are_those_of_the_models() -> None:
    import gpu_cases
    import shapes

    few, every = gpu_cases.depthwise_cases("few"), gpu_cases.depthwise_cases("all")
    assert set(few) <= set(every)
    assert len(every) == len(set(every))
    assert {(c.model, c.batch, c.dtype_name) for c in every} == {
        (m, b, d) for m in ("b1", "b3") for b in (1, 8, 64) for d in gpu_cases.DTYPES
    }
    assert {c.stage for c in every} == {0, 1, 2, 3, 4}
    assert {c.stage for c in few if c.shape.kernel == (3, 3, 3)} >= {0, 1, 2}
    attention = gpu_cases.attention_cases("all")
    assert len(attention) == 2 * 2 * 9
    assert all(len(c.shape.sources) == 2 for c in attention)
    # Taps outside of the input cost nothing.
    one = shapes.DepthwiseShape((1, 1, 1, 1, 1), (3, 3, 3), (1, 1, 1))
    assert gpu_cases.taps_inside(one) == 1
    strided = shapes.DepthwiseShape((2, 3, 4, 5, 6), (3, 3, 3), (1, 2, 2))
    assert strided.output == (2, 3, 4, 3, 3)
    assert gpu_cases.taps_inside(strided) == 6 * 10 * 7 * 8
