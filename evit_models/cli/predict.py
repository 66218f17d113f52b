"""What a model says of one video: the path that `evit classify` and `evit demo` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from evit_models import EfficientViT3D
from evit_models.cli.clips import clips, transform_for
from evit_models.cli.common import UserError
from evit_models.cli.ui import progress
from evit_models.training.objective import SINGLE, Heads
from evit_models.video import VideoReader

_FRAMES, _SIZE = 16, 224  # where neither the user nor the checkpoint says
_MOST_PIXELS = 1 << 28  # of a clip that a file asks for: 3 GB as float32


@dataclass(frozen=True)
class ClipPlan:
    """Which clips a model is shown, and what its classes are called.

    ``stride`` is None where frames are spread over the whole video. ``from_checkpoint`` says in
    words what the user left to the checkpoint.
    """

    frames: int
    stride: int | None
    size: int
    names: list[str] | None
    from_checkpoint: tuple[str, ...]


def plan_clips(
    model: EfficientViT3D,
    *,
    frames: int | None = None,
    stride: int | None = None,
    size: int | None = None,
    names: list[str] | None = None,
) -> ClipPlan:
    """Fills in what the user did not say with what the checkpoint knows of its training.

    A ``stride`` of 0 spreads the frames. Raises UserError for names that are not as many as the
    classes, and for a checkpoint that asks for clips too large to be meant.
    """
    if names and len(names) != model.num_classes:
        raise UserError(
            f"--labels: the file names {len(names)} classes, the model has {model.num_classes}"
        )
    known, used = model.data_cfg, []
    if frames is None and "input_size" in known:
        frames = known["input_size"][1]
        used.append(f"{frames} frames")
    if stride is None and "stride" in known:
        stride = known["stride"] or 0
        used.append(spread(stride))
    if size is None and "input_size" in known:
        size = known["input_size"][2]
        used.append(f"{size} x {size} pixels")
    if names is None and "class_names" in known:
        names = list(known["class_names"])
        used.append(f"names of {len(names)} classes")
    frames, size = frames or _FRAMES, size or _SIZE
    if used and frames * size * size > _MOST_PIXELS:
        raise UserError(
            f"--checkpoint: asks for clips of {frames} frames of {size} x {size} pixels; "
            "give --frames and --size"
        )
    return ClipPlan(frames, stride or None, size, names, tuple(used))


def spread(stride: int | None) -> str:
    """In words, which frames of a video a clip takes."""
    return f"{stride} apart" if stride else "spread over the video"


def predict(
    reader: VideoReader,
    model: EfficientViT3D,
    plan: ClipPlan,
    *,
    views: int = 1,
    crops: int = 1,
    topk: int = 5,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """The classes with the highest probabilities, best first, for each of the model's heads.

    Probabilities are means over views and crops. Each row has "head" (None where there is only
    one), "class" (its number in the head), "label" (None without names) and "probability".
    """
    heads = Heads(model.data_cfg.get("heads") or model.num_classes)
    transform = transform_for(model, size=plan.size, crops=crops)
    device = next(model.parameters()).device
    sums: dict[str, torch.Tensor] = {}
    with progress("view", views, quiet=quiet or views == 1) as advance, torch.inference_mode():
        for clip in clips(reader, transform, frames=plan.frames, stride=plan.stride, views=views):
            for head, logits in heads.split(model(clip.to(device)).double()).items():
                scores = logits.softmax(-1).mean(0).cpu()
                sums[head] = sums[head] + scores if head in sums else scores
            advance()
    rows, offset = [], 0
    for head, size in heads.sizes.items():
        best = (sums[head] / views).topk(min(topk, size))
        rows += [
            {
                "head": None if head == SINGLE else head,
                "class": index,
                "label": plan.names[offset + index] if plan.names else None,
                "probability": probability,
            }
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        offset += size
    return rows
