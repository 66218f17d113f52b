"""What a model says of every clip of a dataset, by one process or by several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from evit_models.training.config import TrainConfig
from evit_models.training.distributed import Ranks
from evit_models.training.loading import loader, move, read, reading
from evit_models.training.metrics import Predictions, figures, merge
from evit_models.training.objective import Heads
from evit_models.training.sampler import evaluation_shard

if TYPE_CHECKING:
    from evit_models.video.datasets import ClipDataset

_BEST = 5

#: From the model's logits (B, V, total) to probabilities of the heads that are reported.
Scores = Callable[[Tensor], dict[str, Tensor]]


@dataclass
class Evaluation:
    """Predictions by head: of whole videos (views averaged), and of every view by itself.

    Args:
        sizes: classes of every head.
        videos: their `index` is the clip's number in the dataset.
        views: their `index` counts the views of all clips, those of clip 0 first.
        sources: the file or name of every clip that was evaluated, by its number.
        unreadable: the file and the reason of every clip that could not be, by its number.
    """

    sizes: dict[str, int]
    videos: dict[str, Predictions]
    views: dict[str, Predictions]
    sources: dict[int, str] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)

    def figures(self) -> dict[str, dict[str, float]]:
        """Returns the figures of every head, per video; "view_top1" is that of single views."""
        rows = {}
        for name, size in self.sizes.items():
            rows[name] = figures(self.videos[name], size)
            if rows[name]["clips"]:
                rows[name]["view_top1"] = figures(self.views[name], size)["top1"]
        return rows


def evaluate(
    model: nn.Module,
    heads: Heads,
    dataset: ClipDataset,
    config: TrainConfig,
    ranks: Ranks,
    *,
    scores: Scores | None = None,
    sizes: dict[str, int] | None = None,
    after_batch: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Returns what a model says of a dataset in evaluation mode; the same in every process.

    Args:
        model: is put into evaluation mode and stays there.
        dataset: gives (views, 3, T, H, W) videos; invalid ones are counted, and nothing else.
        scores: what to report in place of the model's own heads, with their `sizes`.
    """
    model.eval()
    sizes = sizes or heads.sizes
    mine = list(evaluation_shard(len(dataset), ranks.rank, ranks.world))
    step = config.eval_batch_size
    batches = [mine[start : start + step] for start in range(0, len(mine), step)]
    parts: list[tuple[dict[str, Predictions], dict[str, Predictions]]] = []
    sources: dict[int, str] = {}
    unreadable: dict[int, str] = {}
    with reading(config, lambda: "the evaluation was not finished"), torch.inference_mode():
        for batch in read(loader(dataset, batches, config, ranks.device.type), config):
            valid = batch["valid"].bool()
            facts = zip(
                batch["index"].tolist(), batch["source"], batch["error"], valid, strict=True
            )
            for index, source, error, good in facts:
                if good:
                    sources[index] = source
                else:
                    unreadable[index] = f"{source}: {error}"
            if valid.any():
                parts.append(_predict(model, heads, batch, valid, config, ranks, scores))
            after_batch()
    merged: list[dict[str, Predictions]] = []
    for kind in (0, 1):
        whole = {name: merge(part[kind][name] for part in parts) for name in sizes}
        everyone = ranks.gather(whole)
        merged.append({name: merge(one[name] for one in everyone) for name in sizes})
    texts = []
    for mine_of in (sources, unreadable):
        together = [item for one in ranks.gather(mine_of) for item in one.items()]
        texts.append(dict(sorted(together)))
    return Evaluation(dict(sizes), merged[0], merged[1], *texts)


def autocast(precision: str, device: torch.device) -> Any:
    """Returns the context of a precision: "fp32", "bf16" or "fp16"."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def _predict(
    model: nn.Module,
    heads: Heads,
    batch: dict[str, Any],
    valid: Tensor,
    config: TrainConfig,
    ranks: Ranks,
    scores: Scores | None,
) -> tuple[dict[str, Predictions], dict[str, Predictions]]:
    video = move(batch["video"][valid], ranks.device)
    views = video.shape[1]
    with autocast(config.precision, ranks.device):
        logits = model(video.flatten(0, 1)).float().unflatten(0, (-1, views))
    if scores is None:
        probabilities = {name: part.softmax(-1) for name, part in heads.split(logits).items()}
    else:
        probabilities = scores(logits)
    labels = {name: label[valid] for name, label in heads.targets(batch["label"]).items()}
    index = batch["index"][valid]
    by_video, by_view = {}, {}
    for name, shares in probabilities.items():
        shares, label = shares.cpu(), labels[name]
        by_video[name] = _record(index, label, shares.mean(1))
        by_view[name] = _record(
            (index[:, None] * views + torch.arange(views)).flatten(),
            label.repeat_interleave(views),
            shares.flatten(0, 1),
        )
    return by_video, by_view


def _record(index: Tensor, label: Tensor, shares: Tensor) -> Predictions:
    top, best = shares.topk(min(_BEST, shares.shape[-1]))
    right = shares.gather(-1, label[:, None])[:, 0].double().clamp_min(1e-30)
    return Predictions(
        index.numpy(), label.numpy(), best.numpy(), -np.log(right.numpy()), top.double().numpy()
    )
