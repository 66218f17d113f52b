"""EfficientViT-3D b1 on one clip: inference and a training step, against others' whole networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from exact import check
from networks import (
    ONNXRUNTIME,
    OPENVINO,
    forward_calls,
    layout_of,
    peer_network,
    plain_network,
    random_clip,
    training_call,
)
from plain import PlainEfficientViT3D
from rounds import COMPILED, OURS, PYTORCH, Group, measure, recorded
from shapes import CLIP, MODEL
from torch import Tensor

CASE = f"{MODEL} {'x'.join(map(str, CLIP))}"
FORWARD_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


@pytest.fixture(scope="module")
def plain() -> PlainEfficientViT3D:
    """The network whose weights all peers share."""
    return plain_network()


@pytest.fixture(scope="module")
def forward(plain: PlainEfficientViT3D, rounds: int) -> Group:
    """Logits of one clip."""
    clip = random_clip()
    calls = forward_calls(plain, clip)
    present = {peer: call for peer, call in calls.items() if not isinstance(call, str)}
    exact = copy.deepcopy(plain).double()(clip.double())
    check(present, exact, FORWARD_TOLERANCE, CASE)  # type: ignore[arg-type]
    return measure("model forward", CASE, calls, rounds)


@pytest.fixture(scope="module")
def training(plain: PlainEfficientViT3D, rounds: int) -> Group:
    """Forward, cross-entropy, backward."""
    clip = random_clip()
    calls = {
        peer: training_call(
            peer_network(peer, plain), clip.contiguous(memory_format=layout_of(peer))
        )
        for peer in (OURS, *PYTORCH)
    }
    exact = _one_vector(training_call(copy.deepcopy(plain).double(), clip.double()))
    vectors = {peer: partial(_one_vector, call) for peer, call in calls.items()}
    check(vectors, exact, GRADIENT_TOLERANCE, f"{CASE} training")
    return measure("model training step", CASE, calls, rounds)


@recorded
@pytest.mark.parametrize("peer", [OURS, *PYTORCH, COMPILED, OPENVINO, ONNXRUNTIME])
def bench_forward(benchmark: Any, forward: Group, peer: str) -> None:
    forward.report(benchmark, peer)


@recorded
@pytest.mark.parametrize("peer", [OURS, *PYTORCH])
def bench_training_step(benchmark: Any, training: Group, peer: str) -> None:
    training.report(benchmark, peer)


def _one_vector(step: Callable[[], list[Tensor]]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in step()])
