"""b1 on a GPU in bfloat16: forward at batch 1 and 64, as a captured graph, and a training step.

By the clock on the wall: small networks wait for their launches, and that is what users see.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from exact import check
from gpu_options import GPU_OPTIONS, GpuRun
from gpu_peers import attempted, checked, compiled, fair, layout_of, peers_of
from networks import CLASSES, plain_network
from plain import PlainEfficientViT3D, load
from rounds import (
    AUTOTUNED,
    CHANNELS_LAST,
    COMPILED,
    NCDHW,
    OURS,
    OURS_TRITON,
    Group,
    inference,
    measure,
    recorded,
)
from shapes import CLIP, MODEL
from torch import Tensor, nn

from evit_models import create_model
from evit_models.cli.cuda import captured, peak_bytes
from evit_models.registry import prefer_backend

DTYPE = torch.bfloat16
GRAPH = ", captured graph"
TRAINED = (OURS, OURS_TRITON, NCDHW, CHANNELS_LAST, COMPILED)
# Rounding of half a hundred layers in bfloat16; in float32 the wiring is compared.
FORWARD_TOLERANCE, WIRING_TOLERANCE = 0.1, 1e-3
# A batch, and clips of (T, H, W), with which float64 takes no time.
SMALL = (2, 3, 4, 64, 64)
TINY = (2, 3, 2, 32, 32)


class Batch(NamedTuple):
    """Clips of a network's input."""

    size: tuple[int, ...]

    def __str__(self) -> str:
        return f"b1-{'x'.join(map(str, self.size[2:]))}-batch{self.size[0]}-bfloat16"

    @property
    def facts(self) -> dict[str, Any]:
        """What the table needs to know of it."""
        return {"model": "b1", "batch": self.size[0], "dtype": "bfloat16"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    options = metafunc.config.stash[GPU_OPTIONS]
    tiny = options.shapes == "tiny"
    training = metafunc.function is bench_training_step
    batches = [2] if tiny else [64] if training else [64, 1]
    cases = [Batch((n, *(TINY if tiny else CLIP)[1:])) for n in batches]
    metafunc.parametrize("case", cases, ids=str, indirect=True, scope="module")
    metafunc.parametrize("peer", options.chosen(_peers(options, training=training)))


@pytest.fixture(scope="module")
def plain() -> PlainEfficientViT3D:
    """The network whose weights all peers share, on the CPU."""
    return plain_network()


@pytest.fixture(scope="module")
def forward(case: Batch, gpu_run: GpuRun, plain: PlainEfficientViT3D) -> Group:
    """Logits of a batch of clips; at batch 1 also replayed from a captured graph."""
    device = gpu_run.device
    names = gpu_run.peers(_peers(gpu_run.options, training=False))
    clip = torch.randn(case.size, device=device, dtype=DTYPE)

    def make(name: str) -> Callable[[], Any]:
        base = name.removesuffix(GRAPH)
        network = _network(base, plain, device).to(DTYPE)
        function = compiled(network, base, device) if base in (COMPILED, AUTOTUNED) else network
        call = inference(function, clip.contiguous(memory_format=layout_of(base)))
        return captured(call, device) if name.endswith(GRAPH) else call

    def exact() -> Tensor:
        with torch.no_grad():
            logits: Tensor = copy.deepcopy(plain).to(device).double()(clip.double())
        return logits

    with fair():
        makers = {name: partial(make, name) for name in names}
        calls = checked(makers, exact, FORWARD_TOLERANCE, str(case))
        group = measure("gpu model forward", str(case), calls, gpu_run.rounds, device)
    group.facts = case.facts
    return group


@pytest.fixture(scope="module")
def training(case: Batch, gpu_run: GpuRun, plain: PlainEfficientViT3D) -> Group:
    """Forward, cross-entropy and backward under autocast, weights in float32."""
    device = gpu_run.device
    names = gpu_run.peers(_peers(gpu_run.options, training=True))
    with fair():
        exact = _small_step(copy.deepcopy(plain).double(), device)
        clip = torch.randn(case.size, device=device)

        def make(name: str) -> Callable[[], Any]:
            network = _network(name, plain, device)
            # In float32 and on small clips, where float64 takes no time.
            wiring = partial(_small_step, copy.deepcopy(network), device)
            check({name: wiring}, exact, WIRING_TOLERANCE, f"{case}")
            function = compiled(network, name, device) if name == COMPILED else network
            same = clip.contiguous(memory_format=layout_of(name))
            step = _step(function, list(network.train().parameters()), same, DTYPE)
            if not all(gradient.isfinite().all() for gradient in step()):
                raise AssertionError(f"{case}, {name}: a gradient is not finite")
            return step

        makers = {name: partial(make, name) for name in names}
        calls = attempted(makers)
        present = {name: call for name, call in calls.items() if not isinstance(call, str)}
        memory = {name: {"peak_bytes": [peak_bytes(c, device)]} for name, c in present.items()}
        group = measure("gpu model training step", str(case), calls, gpu_run.rounds, device)
    group.facts, group.extra = case.facts, memory
    return group


@recorded
def bench_forward(benchmark: Any, forward: Group, peer: str) -> None:
    forward.report(benchmark, peer)


@recorded
def bench_training_step(benchmark: Any, training: Group, peer: str) -> None:
    training.report(benchmark, peer)


def _peers(options: Any, *, training: bool) -> list[str]:
    served = peers_of("depthwise_conv3d", options.device)
    if training:
        return [name for name in TRAINED if name in served]
    # The compiler tries every product of the network for minutes: not among the few.
    wanted = [*TRAINED, *([AUTOTUNED] if options.shapes == "all" else [])]
    names = [name for name in wanted if name in served]
    return [*names, *(name + GRAPH for name in names)]


def _network(peer: str, plain: PlainEfficientViT3D, device: torch.device) -> nn.Module:
    """Ours with the plain network's weights, or a copy of that one, in the peer's layout."""
    network: nn.Module
    if peer in (OURS, OURS_TRITON):
        network = create_model(MODEL, CLASSES).train(plain.training)
        load(network, plain.state_dict())
        prefer_backend(network, "triton" if peer == OURS_TRITON else "native", device)
    else:
        network = copy.deepcopy(plain)
        network.to(memory_format=layout_of(peer))  # type: ignore[call-overload]
    return network.to(device)


def _step(
    function: Callable[..., Tensor],
    parameters: list[nn.Parameter],
    clip: Tensor,
    dtype: torch.dtype | None,
) -> Callable[[], list[Tensor]]:
    labels = torch.arange(clip.shape[0], device=clip.device) % CLASSES

    def call() -> list[Tensor]:
        with torch.autocast(clip.device.type, dtype=dtype, enabled=dtype is not None):
            logits = function(clip)
        loss = nn.functional.cross_entropy(logits.to(parameters[0].dtype), labels)
        return list(torch.autograd.grad(loss, parameters))

    return call


def _small_step(network: nn.Module, device: torch.device) -> Tensor:
    """All gradients of two small clips as one vector."""
    network.to(device).train()
    generator = torch.Generator().manual_seed(0)
    like = next(network.parameters())
    clip = torch.randn(SMALL, generator=generator).to(device, like.dtype)
    step = _step(network, list(network.parameters()), clip, None)
    return torch.cat([gradient.flatten() for gradient in step()])
