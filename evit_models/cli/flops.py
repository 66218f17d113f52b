"""Counting operations without computing anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def count_flops(model: nn.Module, shape: Sequence[int]) -> int:
    """Operations of one forward pass on an input of this shape, two per multiply-add.

    Counts convolutions, linear layers and matrix products. The model's operators must be PyTorch's
    own (``backend="reference"``): the counter knows no others. All happens on the meta device,
    where tensors have shapes but no memory.
    """
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
        clip = torch.empty(tuple(shape))
        with counter:
            functional_call(model, shapes, (clip,))
    return counter.get_total_flops()
