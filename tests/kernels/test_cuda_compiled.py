"""What nvcc makes of the CUDA kernels, for GPUs that need not be there."""

from __future__ import annotations

import sys
from pathlib import Path

import background
import pytest
import shared

NATIVE = Path(__file__).resolve().parent.parent / "native"
sys.path.insert(0, str(NATIVE))

import cuda_resources  # noqa: E402

SCRIPT = (NATIVE / "cuda_resources.py", "--keep", str(shared.folder()))
pytestmark = [
    pytest.mark.background(*SCRIPT),
    pytest.mark.skipif(cuda_resources.nvcc() is None, reason="there is no nvcc"),
]


def _kernels(operator: str) -> dict[str, str]:
    background.answer(*SCRIPT)
    return cuda_resources.entries(shared.folder() / f"{operator}_80.ptx")


def test_no_kernel_spills_and_the_table_of_resources_is_kept() -> None:
    answer = background.answer(*SCRIPT)
    assert answer.returncode == 0, answer.text


def test_strips_load_and_store_whole_vectors() -> None:
    strips = {
        name: code
        for name, code in _kernels("depthwise_conv3d").items()
        if "Strip<" in name or name.startswith("WeightPlane")
    }
    # Three types, two windows, two strides, two layouts; of three directions.
    assert len(strips) == 12 * 2 * 3
    for name, code in strips.items():
        assert ".local" not in code, name
        if ", true>" in name or name.startswith("WeightPlane"):
            continue  # planes are read column by column
        if name.startswith("WeightStrip"):
            # 16 bytes, but 8 of 16-bit types, and half of that in windows of 5.
            kind = ("v2" if ", 5," in name else "v4") + (".f32" if "<float" in name else ".u16")
            assert f"ld.global.{kind}" in code, name
            continue
        # 16 bytes, but 8 of 16-bit types in windows of 5. Weights are floats.
        kind = "f32" if "<float" in name else "u16" if ", 5," in name else "u32"
        assert f"ld.global.v4.{kind}" in code, name
        assert f"st.global.wb.{'v2' if kind == 'u16' else 'v4'}.u32" in code, name
        assert "ld.global.v4.f32" in code, name


def test_instructions_of_tensor_cores_and_whole_vectors() -> None:
    blocks = {
        name: code
        for name, code in _kernels("relu_linear_attention").items()
        if name.startswith(("KeySums<", "Attention<", "QueryGradients<", "KeyValueGradients<"))
        and "double" not in name
    }
    assert {name.split("<")[0] for name in blocks} == {
        "KeySums",
        "Attention",
        "QueryGradients",
        "KeyValueGradients",
    }
    for name, code in blocks.items():
        wide = "<float" not in name and ", 8>" not in name
        assert ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32" in code) == wide, name
        assert "ld.global.v4." in code, name
        assert "KeySums" in name or "st.global.v4." in code, name
        assert ".local" not in code, name
