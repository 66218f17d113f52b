"""Averaged weights: an exponential moving average of a model, for evaluation."""

from __future__ import annotations

import copy

import torch
from torch import nn

from evit_models.efficientvit3d import EfficientViT3D
from evit_models.training.sharding import whole


class AveragedModel:
    """A whole copy of a model whose parameters follow it slowly; buffers follow at once.

    Early on the average forgets faster, min(decay, (1 + n) / (10 + n)) at the n-th update, so that
    the random start does not linger.

    Args:
        model: what is followed.
        decay: share of the average that an update keeps.
    """

    def __init__(self, model: EfficientViT3D, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the model's present weights into the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for mean, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(whole(parameter), 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, object]:
        """Returns the weights and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Takes back what `state_dict` gave."""
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.updates = int(state["updates"])  # type: ignore[call-overload]
