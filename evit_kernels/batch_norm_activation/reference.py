"""The definition of batch_norm_activation, in plain PyTorch: any dtype, any device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from evit_kernels import _activations


def batch_norm_activation(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
) -> Tensor:
    """PyTorch's batch normalisation, then the activation."""
    output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _activations.reference(output, activation)
