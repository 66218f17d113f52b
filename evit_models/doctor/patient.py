"""What is examined, and all checks in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evit_models.doctor import clips, history, weights
from evit_models.doctor.finding import Finding
from evit_models.efficientvit3d import EfficientViT3D

if TYPE_CHECKING:
    from evit_models.video.datasets import ClipDataset


@dataclass
class Patient:
    """Everything that is known of some weights; what is missing leaves its checks undone.

    Args:
        tensors: the weights by name. structure: the model that they are of, with any weights.
        model: the same with these weights, None where they cannot be loaded.
        frames, frames_source: length of the clips, and who says so.
        statistics: the weights' "mean" and "std". started_from: those of the weights that training
            began with, and their name.
        class_names: of the classes, where known.
        log: a run's lines, None without a run. workers: of the run.
        problems, whole: what is wrong with checkpoints, and how many are right.
        groups: `param_groups` of the optimiser.
        figures, figures_source: figures of predictions by head, and where they are from.
        train_set, eval_set: clips of training and of evaluation. mix: of batches, see `clips`.
        no_clips: why there are none.
    """

    tensors: Mapping[str, Tensor]
    structure: EfficientViT3D
    model: EfficientViT3D | None = None
    frames: int = 16
    frames_source: str = "the usual length"
    statistics: Mapping[str, Any] = field(default_factory=dict)
    started_from: tuple[str, Mapping[str, Any]] | None = None
    class_names: Sequence[str] | None = None
    log: Sequence[Mapping[str, Any]] | None = None
    workers: int = 0
    problems: Sequence[str] = ()
    whole: int = 0
    groups: Sequence[Mapping[str, Any]] | None = None
    figures: Mapping[str, Mapping[str, float]] | None = None
    figures_source: str = ""
    train_set: ClipDataset | None = None
    eval_set: ClipDataset | None = None
    mix: clips.Mixed | None = None
    no_clips: str = "give the videos (--data)"


def diagnose(patient: Patient, *, samples: int = 16) -> list[Finding]:
    """Returns what every check found, in the order of the checks.

    Args:
        samples: clips of evaluation that are looked at.
    """
    tensors, structure = patient.tensors, patient.structure
    source, expected = patient.started_from or ("weights of this family", None)
    findings = [
        weights.non_finite_weights(tensors),
        weights.dead_norms(tensors),
        weights.unsettled_norms(tensors),
        weights.attention_without_time(structure, patient.frames, patient.frames_source),
        weights.blind_to_order(tensors),
        weights.pixel_statistics(patient.statistics, expected, source),
        _first_norm(patient, samples),
        _collapse(patient),
        _augmentation(patient),
        _mirroring(patient),
        _decay(patient),
    ]
    if patient.log is None:
        return findings
    heads = structure.data_cfg.get("heads") or {"class": structure.num_classes}
    return [
        *findings,
        history.flat_loss(patient.log, list(heads.values())),
        history.skipped_steps(patient.log),
        history.data_bound(patient.log, patient.workers),
        history.unreadable_videos(patient.log),
        history.corrupt_checkpoints(patient.problems, patient.whole),
    ]


def _first_norm(patient: Patient, samples: int) -> Finding:
    name = "first_norm_inputs"
    if patient.model is None:
        return Finding(name, "unchecked", "the weights cannot be loaded")
    if patient.eval_set is None:
        return Finding(name, "unchecked", patient.no_clips)
    found = clips.sample_clips(patient.eval_set, samples)
    return clips.first_norm(patient.model, [clip for _, clip in found])


def _collapse(patient: Patient) -> Finding:
    if patient.figures is not None:
        return history.collapsed_predictions(patient.figures, patient.figures_source)
    advice = "no predictions: evaluate first, or give labelled videos (--data)"
    return Finding("collapsed_predictions", "unchecked", advice)


def _augmentation(patient: Patient) -> Finding:
    from evit_models.video import TrainTransform

    if patient.train_set is None:
        reason = "only a run augments" if patient.log is None else patient.no_clips
        return Finding("augmentation_axis", "unchecked", reason)
    transform = getattr(patient.train_set, "transform", None)
    augment = transform if isinstance(transform, TrainTransform) else None
    return clips.augmentation_axis(augment, patient.mix, _frame(patient.train_set))


def _mirroring(patient: Patient) -> Finding:
    if patient.train_set is None:
        reason = "only a run augments" if patient.log is None else patient.no_clips
        return Finding("mirrored_directions", "unchecked", reason)
    flip = getattr(getattr(patient.train_set, "transform", None), "flip", 0.0)
    return clips.mirrored_directions(flip > 0, patient.class_names)


def _decay(patient: Patient) -> Finding:
    if patient.groups is None:
        return Finding("decay_on_norms", "unchecked", "there is no state of an optimiser")
    order = [name for name, _ in patient.structure.named_parameters()]
    shapes = dict(patient.structure.named_parameters())
    return history.decay_on_norms(patient.groups, shapes, order)


def _frame(dataset: ClipDataset) -> NDArray[np.uint8]:
    """The first frame of the first readable video, or a picture of noise in blocks."""
    import av

    from evit_models.video import VideoError
    from evit_models.video.datasets import VideoFiles
    from evit_models.video.datasets.files import open_footage

    if isinstance(dataset, VideoFiles):
        for index in range(min(5, len(dataset))):
            try:
                with open_footage(dataset.segment(index)) as footage:
                    return next(iter(footage.frames(np.zeros(1, np.int64))))
            except (VideoError, OSError, av.error.FFmpegError):
                continue
    blocks = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def predicted_figures(
    model: EfficientViT3D, dataset: ClipDataset, samples: int
) -> dict[str, dict[str, float]] | None:
    """Returns figures of what a model of one head says of some clips, None where none is readable.

    The clips are drawn by chance, always the same ones.
    """
    from evit_models.training.metrics import Predictions, figures

    order = np.random.default_rng(0).permutation(len(dataset))[:samples]
    labels, answers, rows = [], [], []
    with torch.inference_mode():
        for index in sorted(order.tolist()):
            sample = dataset[index]
            if sample["valid"] and isinstance(sample["label"], int):
                logits = model(sample["video"]).float().softmax(-1).mean(0)
                rows.append(index)
                labels.append(sample["label"])
                answers.append(logits.topk(min(5, len(logits))).indices.tolist())
    if not rows:
        return None
    found = Predictions(np.array(rows), np.array(labels), np.array(answers), np.zeros(len(rows)))
    return {"class": figures(found, model.num_classes)}
