"""Models on a GPU under autocast, in a CUDA graph and compiled; on a CPU one of them, eagerly."""

from __future__ import annotations

import copy
import math

import gpu
import pytest
import torch
from torch import Tensor, nn

from evit_kernels import available_backends, backends
from evit_models import create_model, list_models, set_backend
from evit_models.cli import cuda
from evit_models.registry import prefer_backend

CLASSES = 10
CLIP = (2, 3, 4, 64, 64)
SMALL = "efficientvit3d_b0"


def _places() -> list[tuple[str, str]]:
    """Devices, and backends that serve at least one operator there."""
    if not torch.cuda.is_available():
        return [("cpu", "native")]
    found = {
        name
        for operator in backends.CUDA_OPERATORS
        for name in available_backends("cuda", operator)
    }
    return [("cpu", "native"), *(("cuda", name) for name in ("native", "triton") if name in found)]


PLACES = _places()
MODELS = [
    (name, device, backend)
    for device, backend in PLACES
    for name in (list_models() if device == "cuda" else [SMALL])
]


def _model(name: str, device: str, backend: str) -> nn.Module:
    """A model in training mode on a device, in which every layer counts."""
    torch.manual_seed(0)
    model = create_model(name, CLASSES)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
    set_backend(model, "reference")
    if backend != "reference":
        assert prefer_backend(model, backend, device)
    return model.to(device)


def _clip(device: str) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(CLIP).to(device)


def _results(model: nn.Module, clip: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Logits, and all gradients as one vector, under autocast or in float32."""
    with torch.autocast(clip.device.type, dtype=dtype, enabled=dtype is not None):
        logits = model(clip)
    loss = nn.functional.cross_entropy(logits.float(), torch.arange(CLIP[0], device=clip.device))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [logits.detach(), torch.cat([g.flatten() for g in gradients])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "device", "backend"), MODELS)
def test_under_autocast_as_accurate_as_pytorch(
    name: str, device: str, backend: str, dtype: torch.dtype
) -> None:
    clip = _clip(device)
    with gpu.full_digits():
        exact = _results(_model(name, device, "reference"), clip, None)
        theirs = _results(_model(name, device, "reference"), clip, dtype)
        ours = _results(_model(name, device, backend), clip, dtype)
        single = _results(_model(name, device, backend), clip, None)
    for our, their, mine, true, what in zip(
        ours, theirs, single, exact, ("logits", "gradients"), strict=True
    ):
        error, reference, own = (
            float((x.double() - true.double()).norm() / true.double().norm())
            for x in (our, their, mine)
        )
        assert own < 1e-3, f"{what} in float32: relative error {own:.1e}"
        if not math.isfinite(reference):
            continue  # float16 has not the range for these gradients, in PyTorch either
        assert error <= 2 * reference + 1e-3, f"{what}: {error:.1e}, PyTorch's {reference:.1e}"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_a_graph_of_forward_and_backward(
    device: str, backend: str, dtype: torch.dtype | None
) -> None:
    model, clip = _model(SMALL, device, backend), _clip(device)
    plain = copy.deepcopy(model)
    labels = torch.arange(CLIP[0], device=device)
    parameters = list(model.parameters())

    def step(model: nn.Module) -> list[Tensor]:
        # Autocast must not keep casts of weights from outside of the graph.
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            loss = nn.functional.cross_entropy(model(clip).float(), labels)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    with gpu.full_digits():
        replay, results = gpu.captured(lambda: step(model), device)
        with torch.no_grad():
            clip.mul_(-0.5)
            for parameter, other in zip(parameters, plain.parameters(), strict=True):
                parameter.mul_(1.01)
                other.copy_(parameter)
        replay()
        replayed = [x.detach().clone() for x in results]
        expected = step(plain)
    for got, wanted in zip(replayed, expected, strict=True):
        assert got.isfinite().all()
        error = (got.double() - wanted.detach().double()).norm()
        # Libraries may choose other algorithms inside of a graph.
        assert error <= 0.05 * wanted.detach().double().norm() + 1e-4


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_a_graph_of_inference(device: str, backend: str) -> None:
    model, clip = _model(SMALL, device, backend).eval(), _clip(device)

    def logits() -> list[Tensor]:
        with torch.no_grad():
            return [model(clip)]

    with gpu.full_digits():
        replay, (output,) = gpu.captured(logits, device)
        clip.mul_(-0.5)
        replay()
        torch.testing.assert_close(output.clone(), logits()[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("device", "backend", "mode"),
    [(device, backend, mode) for device, backend in PLACES for mode in gpu.modes(device)],
)
def test_compiled(device: str, backend: str, mode: str) -> None:
    torch.compiler.reset()
    model, clip = _model(SMALL, device, backend), _clip(device)
    compiled = torch.compile(model, **gpu.compiler(device, mode))
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        results = [x.clone() for x in _results(compiled, clip, None)]
        with gpu.full_digits():
            expected = _results(model, clip, None)
        for got, wanted in zip(results, expected, strict=True):
            error = (got.double() - wanted.double()).norm() / wanted.double().norm()
            assert error < 0.02


@pytest.mark.parametrize(("device", "backend"), PLACES)
def test_fused_operators_launch_fewer_kernels(device: str, backend: str) -> None:
    clip = torch.randn(1, 3, 4, 64, 64).to(device)
    counts = {}
    for name in (backend, "reference"):
        model = _model("efficientvit3d_b1", device, name).eval()

        def call(model: nn.Module = model) -> Tensor:
            with torch.inference_mode():
                logits: Tensor = model(clip)
            return logits

        counts[name] = cuda.launches(cuda.profile(call, torch.device(device)))
    print(f"b1 forward: {counts}")
    if gpu.is_gpu(device):
        assert 0 < counts[backend] < counts["reference"]
    else:
        assert set(counts.values()) == {0}
