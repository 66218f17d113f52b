"""What can be said about the CUDA kernels without a GPU; on one, `device` runs the other tests."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import emulation
import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from depthwise_cases import Case
from torch import Tensor

from evit_kernels import _native, backends, depthwise_conv3d, relu_linear_attention_qkv

NATIVE = Path(__file__).resolve().parent.parent / "native"

LAST = torch.channels_last_3d


def _run(program: str, folder: Path) -> str:
    """Compiles a C++ program of tests/native, runs it, and returns what it printed."""
    path = str(folder / program)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{emulation.CSRC / 'include'}"]
    source = str(NATIVE / f"{program}.cpp")
    subprocess.run([*compiler, *flags, source, "-o", path], check=True)
    answer = subprocess.run([path], check=False, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


def test_index_arithmetic_for_every_small_shape(tmp_path: Path) -> None:
    assert int(_run("cuda_index", tmp_path).split()[0]) > 100_000


def test_emulation_notices_what_threads_share_without_a_barrier(tmp_path: Path) -> None:
    _run("cuda_block", tmp_path)


LAYOUTS = ("channels_last", "channels_last_slice", "contiguous")
SIZES = (
    ((3, 7, 9), torch.float32, 2),
    ((2, 18, 5), torch.bfloat16, 1),
    ((6, 5, 6), torch.float16, 3),
)
KERNELS = [(3, 3, 3), (5, 5, 5), (1, 3, 3), (1, 5, 5)]


@pytest.mark.parametrize("temporal_padding", ["zeros", "replicate", "causal"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_strips_of_any_size(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], temporal_padding: str
) -> None:
    # Another layout for every size; over three kernels, each of the sizes meets all of them.
    turn = KERNELS.index(kernel)
    for i, (size, dtype, padding) in enumerate(SIZES):
        layout = LAYOUTS[(i + turn) % 3]
        case = Case(2, 16, size, kernel, stride, (kernel[0] // 2, padding, padding))
        case = replace(case, temporal_padding=temporal_padding, activation="hardswish", dtype=dtype)
        tensors = replace(case, layout=layout).tensors()
        with emulation.in_use():
            ours = _with_gradients(case, tensors, "native")
        theirs = _with_gradients(case, tensors, "reference")
        exact = _with_gradients(case, [t.double() for t in tensors], "reference")
        for n, values in enumerate(zip(ours, theirs, exact, strict=True)):
            assert_accurate(*values, BACKWARD if n else FORWARD, f"{size} {layout} {n}")


def _with_gradients(case: Case, tensors: Iterable[Tensor], backend: str) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = case.call(*leaves, backend=backend)
    return [output, *torch.autograd.grad(output, leaves, torch.ones_like(output))]


def test_emulation_runs_the_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = emulation.kernels()
    called: list[str] = []

    def watch(name: str) -> None:
        original = getattr(kernels, name)

        def spy(*arguments: object) -> object:
            called.append(name)
            return original(*arguments)

        monkeypatch.setattr(kernels, name, spy)

    for name in dir(kernels):
        if name.endswith(("forward", "backward")):
            watch(name)
    x = torch.randn(1, 24, 2, 3, 3, requires_grad=True)
    with emulation.in_use():
        y = depthwise_conv3d(x, torch.randn(24, 1, 3, 3, 3), padding=1, backend="native")
        relu_linear_attention_qkv(y, 4, backend="native").sum().backward()
    assert called == [
        "depthwise_conv3d_forward",
        "relu_linear_attention_forward",
        "relu_linear_attention_backward",
        "depthwise_conv3d_backward",
    ]


@pytest.mark.parametrize("planar", [False, True])
def test_output_and_gradient_keep_the_layout_without_copies(planar: bool) -> None:
    x = torch.randn(2, 8, 3, 4, 5)
    x = (x if planar else x.contiguous(memory_format=LAST)).requires_grad_()
    weight = torch.randn(8, 1, 3, 3, 3)
    with emulation.in_use():
        y = depthwise_conv3d(x, weight, padding=1, activation="silu", backend="native")
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.stride() == grad.stride() == x.stride()


def test_a_missing_build_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = _native.importlib.util.find_spec
    monkeypatch.setattr(
        _native.importlib.util,
        "find_spec",
        lambda name: None if name == "evit_kernels._cuda" else find_spec(name),
    )
    reason = backends.native_refusal("depthwise_conv3d", torch.device("cuda"), torch.float32)
    assert reason is not None
    assert "nvcc" in reason


def test_importing_the_package_does_not_load_the_cuda_kernels() -> None:
    code = "import sys, evit_kernels, evit_models; print('evit_kernels._cuda' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
