"""A model made ready for training: what is frozen, and what is computed twice to save memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from evit_models.blocks import Block, EfficientViTBlock, LiteMLA
from evit_models.efficientvit3d import EfficientViT3D
from evit_models.registry import create_model
from evit_models.training.config import TrainConfig

_MOMENTUM = 0.1  # of norms, as everywhere in PyTorch


def make_model(config: TrainConfig, num_classes: int) -> EfficientViT3D:
    """Returns the model of a configuration; its random weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = create_model(
            config.model,
            num_classes,
            pretrained=config.pretrained or None,
            temporal_strides=config.temporal_strides,
            temporal_padding=config.temporal_padding or None,
            aggregation_temporal_kernel=config.aggregation_temporal_kernel,
            inflation=config.inflation,
            drop_path=config.drop_path,
            dropout=config.dropout,
        )
    freeze(model, config.freeze)
    if config.precision == "fp16":
        attend_in_float32(model)
    if config.activation_checkpointing:
        recompute_blocks(model)
    return model


def freeze(model: EfficientViT3D, what: str) -> None:
    """Stops parameters from learning: see `TrainConfig.freeze`."""
    for name, parameter in model.named_parameters():
        norm = isinstance(model.get_submodule(name.rpartition(".")[0]), _BatchNorm)
        frozen = {
            "none": False,
            "backbone": not name.startswith("head."),
            # A kernel of temporal size 1 sees one frame; vectors go with the kernel before them.
            "spatial": not name.startswith("head.")
            and not (parameter.dim() == 5 and parameter.shape[2] > 1),
            "norm": norm,
        }[what]
        parameter.requires_grad_(not frozen)


def train_mode(model: nn.Module) -> None:
    """Sets training mode, but for frozen norms: those keep the statistics that they have."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
            module.eval()


def settle_norms(model: nn.Module, step: int) -> None:
    """Lets the statistics of norms that began at nothing be those of all steps so far, at first.

    A norm begins with a variance of 1 and keeps 0.9 of it at every step. Where the truth is 1e-5,
    as in the first layers of a fresh network, evaluation would be wrong for 150 steps. The mean of
    the first ten steps begins with the truth, and then goes on as norms usually do.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None if step < round(1 / _MOMENTUM) else _MOMENTUM


def attend_in_float32(model: nn.Module) -> None:
    """Keeps attention out of autocast: without norms its convolutions overflow float16."""
    for module in model.modules():
        if isinstance(module, LiteMLA):
            module.forward = partial(_in_float32, module.forward)  # type: ignore[method-assign]


def recompute_blocks(model: nn.Module) -> None:
    """Has blocks forget what they computed and compute it again for the backward pass.

    The second pass must not move the statistics of norms again, so it leaves buffers as they were.
    """
    for module in model.modules():
        inside = isinstance(module, (Block, EfficientViTBlock))
        if inside and not any(isinstance(m, Block) for m in list(module.modules())[1:]):
            module.forward = partial(_recomputed, module, module.forward)


def _in_float32(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def _recomputed(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not (module.training and torch.is_grad_enabled()):
        return forward(x)

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _same_buffers(module)

    out: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), before, strict=True):
                buffer.copy_(value)
