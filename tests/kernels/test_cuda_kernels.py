"""What can be said about the CUDA kernels without a GPU; on one, `device` runs the other tests."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import emulation
import pytest
import torch

from evit_kernels import _native, backends, depthwise_conv3d, relu_linear_attention_qkv

NATIVE = Path(__file__).resolve().parent.parent / "native"
LAST = torch.channels_last_3d


def test_index_arithmetic_for_every_small_shape(tmp_path: Path) -> None:
    program = str(tmp_path / "cuda_index")
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{emulation.CSRC / 'include'}"]
    source = str(NATIVE / "cuda_index.cpp")
    subprocess.run([*compiler, *flags, source, "-o", program], check=True)
    answer = subprocess.run([program], check=False, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout
    assert int(answer.stdout.split()[0]) > 100_000


def test_no_kernel_spills_and_the_table_of_resources_is_kept() -> None:
    command = [sys.executable, str(NATIVE / "cuda_resources.py")]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    if answer.returncode == 77:
        pytest.skip("there is no nvcc to compile the kernels with")
    assert answer.returncode == 0, answer.stdout + answer.stderr


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


def test_on_gpus_the_plain_kernels_are_not_the_automatic_choice() -> None:
    names = backends._order(torch.device("cuda"))
    assert names[0] == "reference"
    assert set(names) == set(backends.NAMES)


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
