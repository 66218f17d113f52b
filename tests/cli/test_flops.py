"""The count of operations against one made by hand from the paper's table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evit_models import create_model
from evit_models.cli.flops import count_flops

# widths, depths, head width, widths of the head
TABLE = {
    "efficientvit3d_b0": ((8, 16, 32, 64, 128), (1, 2, 2, 2, 2), 16, (1024, 1280)),
    "efficientvit3d_b1": ((16, 32, 64, 128, 256), (1, 2, 3, 3, 4), 16, (1536, 1600)),
    "efficientvit3d_b2": ((24, 48, 96, 192, 384), (1, 3, 4, 4, 6), 32, (2304, 2560)),
}


def _multiply_adds(name: str, frames: int, side: int) -> int:
    """Multiply-adds of a B model with tubelet strides, layer by layer."""
    widths, depths, d, head = TABLE[name]
    side //= 2
    tokens = frames // 2 * side * side
    total = tokens * 27 * 3 * widths[0]
    total += depths[0] * tokens * widths[0] * (27 + widths[0])
    for stage in range(1, 5):
        before, width = widths[stage - 1], widths[stage]
        down, side = tokens, side // 2
        tokens = frames // 2 * side * side
        total += down * before * 4 * before + tokens * 4 * before * (27 + width)
        inner = tokens * 4 * width * (width + 27 + width)  # MBConv of ratio 4
        if stage <= 2:
            total += (depths[stage] - 1) * inner
            continue
        attention = tokens * width * 3 * width  # qkv
        attention += tokens * 3 * width * (125 + d)  # aggregation: depthwise, then d to d
        attention += 2 * tokens * width * (d + d + 1)  # k v^T, q times that, and the normaliser
        attention += tokens * 2 * width * width  # projection of both scales
        total += depths[stage] * (attention + inner)
    return total + tokens * widths[4] * head[0] + head[0] * head[1] + head[1] * 400


@pytest.mark.parametrize("name", TABLE)
def test_models_match_the_count_by_hand(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, backend="reference").eval()
    assert count_flops(model, (1, 3, 16, 224, 224)) == 2 * _multiply_adds(name, 16, 224)


def test_layers_count_two_operations_per_multiply_add() -> None:
    conv = nn.Conv3d(4, 6, 3, padding=1, groups=2)
    assert count_flops(conv, (2, 4, 5, 7, 9)) == 2 * (2 * 5 * 7 * 9) * 6 * 2 * 27
    assert count_flops(nn.Linear(8, 3), (5, 8)) == 2 * 5 * 8 * 3
