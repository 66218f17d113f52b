"""What is learned: one classifier or several side by side, their targets and their loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

#: The name of the only head of a dataset that has one label per clip.
SINGLE = "class"

Targets = dict[str, Tensor]


class Heads:
    """Splits the outputs of one linear layer into those of one or more classifiers.

    Two heads on the same features are one linear layer whose rows are split, so that a model with
    several heads is an ordinary model with as many classes as they have together.

    Args:
        num_classes: of the only head, or of each head by its name.
    """

    def __init__(self, num_classes: int | Mapping[str, int]) -> None:
        self.sizes = {SINGLE: num_classes} if isinstance(num_classes, int) else dict(num_classes)

    @property
    def total(self) -> int:
        """Outputs of the model."""
        return sum(self.sizes.values())

    def split(self, logits: Tensor) -> dict[str, Tensor]:
        """Returns the (B, classes) logits of every head out of the model's (B, total)."""
        parts = logits.split(list(self.sizes.values()), dim=-1)
        return dict(zip(self.sizes, parts, strict=True))

    def targets(self, label: Tensor | Mapping[str, Tensor]) -> Targets:
        """Returns what each head should say: class numbers (B,) or shares (B, classes)."""
        return {SINGLE: label} if isinstance(label, Tensor) else dict(label)

    def loss(self, logits: Tensor, targets: Targets, label_smoothing: float = 0.0) -> Tensor:
        """Returns the sum over heads of the mean cross entropy, in float32."""
        losses = [
            F.cross_entropy(
                part.float(),
                targets[name],
                # Mixed targets are smoothed where they are mixed.
                label_smoothing=0.0 if targets[name].is_floating_point() else label_smoothing,
            )
            for name, part in self.split(logits).items()
        ]
        return sum(losses[1:], start=losses[0])

    def correct(self, logits: Tensor, targets: Targets) -> Tensor:
        """Returns how many clips the first head has right; a mixed clip's is its largest share."""
        name = next(iter(self.sizes))
        target = targets[name]
        wanted = target.argmax(-1) if target.is_floating_point() else target
        return (self.split(logits)[name].argmax(-1) == wanted).sum()
