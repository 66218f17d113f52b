"""Optimisers, and which parameters decay and learn how fast."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from evit_models.training.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns AdamW or SGD over the parameters that are not frozen.

    Decay is decoupled in both (arXiv 1711.05101): for SGD `decay_weights` does it, because
    PyTorch's own would go through the momentum.
    """
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2))
    for group in groups:
        group["decoupled_decay"] = group.pop("weight_decay")
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


@torch.no_grad()
def decay_weights(optimizer: torch.optim.Optimizer) -> None:
    """Shrinks the weights of groups that have a `decoupled_decay`; call it before a step."""
    for group in optimizer.param_groups:
        if shrink := group["lr"] * group.get("decoupled_decay", 0.0):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - shrink)


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Returns groups of equal decay and learning rate, the names of their tensors with them.

    Only tensors of two and more axes decay: no norms, biases or other vectors. The rate of a layer
    is `layer_decay` times that of the layer behind it; the head has all of it.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    order = sorted({_place(name) for name, _ in model.named_parameters()})
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name in names:
        parameter = model.get_parameter(name)
        decay = weight_decay if parameter.dim() > 1 else 0.0
        scale = layer_decay ** (len(order) - 1 - order.index(_place(name)))
        group = groups.setdefault(
            (decay, scale), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


_PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")


def _place(name: str) -> tuple[int, int]:
    """Depth of a tensor: its stage, and in it 0 for the strided layer, then the blocks."""
    part, _, rest = name.partition(".")
    if part not in _PARTS:
        return len(_PARTS), 0
    block = re.match(r"blocks\.(\d+)\.", rest)
    return _PARTS.index(part), 1 + int(block[1]) if block else 0
