"""Cost as a clip grows from 8 to 128 frames: linear where attention is linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_relu_linear_attention import linear_attention64
from exact import check
from networks import layout_of, peer_network, plain_network, random_clip
from rounds import OURS, Group, inference, measure, recorded
from shapes import CLIP, MODEL
from torch import Tensor

from evit_kernels import relu_linear_attention_qkv

FRAMES = (8, 16, 32, 64, 128)
HEAD_DIM, CHANNELS, SIZE = 16, 128, 14  # of b1's third stage


@pytest.fixture(scope="module")
def model(rounds: int) -> Group:
    """Logits of clips of every length."""
    plain = plain_network()
    ours = peer_network(OURS, plain)
    calls = {}
    for frames in FRAMES:
        clip = random_clip(frames)
        name = f"T={frames}"
        calls[name] = inference(ours, clip.contiguous(memory_format=layout_of(OURS)))
        with torch.inference_mode():
            expected = plain(clip)
        check({OURS: calls[name]}, expected.double(), 1e-4, f"{MODEL} {name}")
    return measure("model forward by frames", f"{MODEL} {CLIP[-1]}x{CLIP[-1]}", calls, rounds)


@pytest.fixture(scope="module")
def attention(rounds: int) -> Group:
    """Attention over clips of every length."""
    calls = {}
    for frames in FRAMES:
        qkv = torch.randn(1, 3 * CHANNELS, frames, SIZE, SIZE)
        exact = linear_attention64(qkv, HEAD_DIM)
        name = f"T={frames}"
        calls[name] = inference(_attend, qkv.contiguous(memory_format=layout_of(OURS)))
        check({OURS: calls[name]}, exact, 1e-5, f"attention {name}")
    case = f"{CHANNELS // HEAD_DIM} heads {SIZE}x{SIZE}"
    return measure("relu_linear_attention forward by frames", case, calls, rounds)


@recorded
@pytest.mark.parametrize("frames", FRAMES)
def bench_model(benchmark: Any, model: Group, frames: int) -> None:
    model.report(benchmark, f"T={frames}")


@recorded
@pytest.mark.parametrize("frames", FRAMES)
def bench_attention(benchmark: Any, attention: Group, frames: int) -> None:
    attention.report(benchmark, f"T={frames}")


def _attend(qkv: Tensor) -> Tensor:
    return relu_linear_attention_qkv(qkv, HEAD_DIM, backend="native")
