"""Names of models, and how one is made from its name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from evit_kernels import available_backends, backends
from evit_kernels.nn import BatchNormAct3d, DepthwiseConv3d, PointwiseConv3d
from evit_models.blocks import LiteMLA
from evit_models.checkpoints import build_pretrained
from evit_models.efficientvit3d import VARIANTS, EfficientViT3D
from evit_models.inflate import check_inflation
from evit_models.layers import DenseConv3d, GroupedPointwiseConv3d

# Which operator a module calls.
_CALLS: dict[type[nn.Module], str] = {
    DepthwiseConv3d: "depthwise_conv3d",
    PointwiseConv3d: "pointwise_conv3d",
    GroupedPointwiseConv3d: "pointwise_conv3d",
    BatchNormAct3d: "batch_norm_activation",
    DenseConv3d: "dense_conv3d",
    LiteMLA: "relu_linear_attention",
}


def list_models(filter: str = "") -> list[str]:
    """Returns the names that `create_model` knows, all or those that contain `filter`."""
    return [name for name in VARIANTS if filter in name]


def create_model(
    name: str,
    num_classes: int = 400,
    *,
    pretrained: str | os.PathLike[str] | None = None,
    temporal_strides: str | Sequence[int] = "tubelet",
    temporal_padding: str | None = None,
    temporal_kernel: int = 3,
    aggregation_temporal_kernel: int = 5,
    inflation: str = "center",
    drop_path: float = 0.0,
    dropout: float = 0.0,
    backend: str | None = None,
) -> EfficientViT3D:
    """Returns a model in training mode, with random weights or with those of a checkpoint.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the classifier; 0 leaves it out.
        pretrained: a .safetensors, .pt or .pth file, or a folder that holds model.safetensors, with
            weights of the original EfficientViT project, of timm, or of this package, for images or
            clips, recognised by its keys; `model.load_report` then says what was taken.
        temporal_strides: "tubelet" (2,1,1,1,1), "full" (1,1,1,1,1), "original" (2,2,2,2,2), or five
            ints for the stem and the four stages.
        temporal_padding: "replicate", "zeros" or "causal"; None means "zeros" for the original
            strides and "replicate" for all others.
        temporal_kernel: temporal size of the convolutions, odd; 1 treats every frame by itself.
        aggregation_temporal_kernel: temporal size inside the attention: 1, 3 or 5.
        inflation: how weights of images become weights of clips: "center" or "mean".
        drop_path: stochastic depth of the last block; it grows linearly from 0.
        dropout: dropout before the classifier.
        backend: backend of every operator: None for the automatic choice, "reference", "native",
            "triton".

    Raises:
        ValueError: an unknown name, an argument out of its range. CheckpointError: a file that does
            not fit, with what it looks like. FileNotFoundError: no such file.
    """
    if name not in VARIANTS:
        close = difflib.get_close_matches(str(name), VARIANTS, n=3, cutoff=0.3)
        raise ValueError(
            f"create_model: unknown model {name!r}, did you mean {' or '.join(map(repr, close))}? "
            f"Known: {', '.join(VARIANTS)}"
            if close
            else f"create_model: unknown model {name!r}. Known: {', '.join(VARIANTS)}"
        )
    check_inflation(inflation)
    _check_backend(backend)
    build = partial(
        EfficientViT3D,
        name,
        num_classes,
        temporal_strides=temporal_strides,
        temporal_padding=temporal_padding,
        temporal_kernel=temporal_kernel,
        aggregation_temporal_kernel=aggregation_temporal_kernel,
        drop_path=drop_path,
        dropout=dropout,
        backend=backend,
    )
    if pretrained is None:
        return build()
    return build_pretrained(build, pretrained, inflation=inflation)


def set_backend(model: nn.Module, backend: str | None) -> None:
    """Sets the backend of every operator inside a model; None returns to the automatic choice."""
    _check_backend(backend)
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend  # type: ignore[assignment]


def prefer_backend(model: nn.Module, backend: str, device: str | torch.device) -> list[str]:
    """Sets a backend for the operators that it serves on a device; the others choose by themselves.

    Returns the names of the operators that it serves inside the model, none perhaps. On GPUs no
    backend but the reference serves all of them.
    """
    _check_backend(backend)
    served = {name: backend in available_backends(device, name) for name in backends.OPERATORS}
    found = []
    for module in model.modules():
        operator = _CALLS.get(type(module))
        if operator is not None:
            module.backend = backend if served[operator] else None  # type: ignore[assignment]
            found.append(operator)
    return [name for name in dict.fromkeys(found) if served[name]]


def _check_backend(backend: str | None) -> None:
    if backend is not None and backend not in backends.NAMES:
        known = ", ".join(map(repr, backends.NAMES))
        raise ValueError(f"backend must be None or one of {known}, got {backend!r}")
