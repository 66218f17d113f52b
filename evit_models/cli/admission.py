"""Everything that `evit doctor` can find out about a run or a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evit_models import CheckpointError, EfficientViT3D, create_model
from evit_models.checkpoints.reading import read_checkpoint
from evit_models.cli.common import UserError
from evit_models.cli.subject import (
    Subject,
    checkpoint_subject,
    data_overrides,
    evaluation_clips,
    run_config,
)
from evit_models.cli.weights import look
from evit_models.doctor import Patient
from evit_models.doctor.clips import Mixed
from evit_models.doctor.patient import predicted_figures
from evit_models.training import ConfigError, TrainConfig, load_config
from evit_models.training.checkpointing import checkpoints, why_bad
from evit_models.training.config import CONFIG_FILE
from evit_models.training.datasets import make_dataset, make_mix, pixel_config
from evit_models.training.logging import read_log
from evit_models.training.metrics import Predictions, figures
from evit_models.training.results import PREDICTIONS, read_predictions
from evit_models.training.run import BEST, CHECKPOINTS
from evit_models.video.datasets import ClipDataset, DatasetError

_NO_DATA = "give labelled videos (--data)"


def admit(
    target: Path,
    *,
    data: str | None,
    dataset: str | None,
    root: str | None,
    predictions: str | None,
    frames: int | None,
    samples: int,
) -> Patient:
    """Collects what the checks look at; a UserError or CheckpointError where it is no patient."""
    run = target if (target / CONFIG_FILE).exists() else None
    config = load_config(run / CONFIG_FILE) if run else None
    states = {file: why_bad(file) for file in checkpoints(target / CHECKPOINTS)} if run else {}
    weights = _weights(target, config, [file for file, reason in states.items() if not reason])
    patient = Patient(weights.tensors, weights.structure, weights.model)
    patient.statistics = {
        key: weights.data[key] for key in ("mean", "std") if _three(weights.data.get(key))
    }
    patient.class_names = weights.data.get("class_names")
    patient.groups = weights.groups
    _set_frames(patient, weights, frames)
    if run is not None and config is not None:
        _add_history(patient, run, config, states)
    overrides = data_overrides(data, dataset, root)
    if frames is not None:
        overrides["frames"] = frames
    _add_clips(patient, weights, run, overrides)
    _add_predictions(patient, run, predictions, samples, given=bool(data or dataset))
    return patient


@dataclass
class _Weights:
    """Tensors, the model that they are of, and what stands beside them in their file."""

    path: Path
    tensors: Mapping[str, Tensor]
    structure: EfficientViT3D
    model: EfficientViT3D | None
    data: Mapping[str, Any]
    groups: list[dict[str, Any]] | None = None
    config: TrainConfig | None = None


def _weights(target: Path, config: TrainConfig | None, whole: list[Path]) -> _Weights:
    """The weights in a file or of a run, whose checkpoints are `whole`, the newest first."""
    path, groups = target, None
    if config is not None:
        files = (target / "model.safetensors", target / BEST / "model.safetensors")
        found = [file for file in (*files, *whole) if file.exists()]
        if not found:
            raise UserError(f"{target}: has neither weights nor a checkpoint that is whole yet")
        path = found[0]
        groups = _state(whole[0])[0] if whole else None
    elif target.suffix in (".pt", ".pth"):
        groups, config = _state(target)
    file = read_checkpoint(path)
    structure = _structure(path, file.config, config)
    structure.data_cfg.update({k: file.data[k] for k in ("heads",) if k in file.data})
    return _Weights(
        path, file.tensors, structure, _loaded(path, structure, bool(file.config)), file.data,
        groups, config,
    )  # fmt: skip


def _state(path: Path) -> tuple[list[dict[str, Any]] | None, TrainConfig | None]:
    """The optimiser's groups and the configuration in a checkpoint of training, if it has them."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever is wrong with it, `read_checkpoint` finds the words
        return None, None
    if not isinstance(state, dict):
        return None, None
    groups, config = None, state.get("config")
    if isinstance(state.get("optimizer"), dict):
        groups = state["optimizer"].get("param_groups")
    try:
        return groups, load_config(overrides=config) if isinstance(config, dict) else None
    except ConfigError:
        return groups, None


def _structure(path: Path, config: Mapping[str, Any], run: TrainConfig | None) -> EfficientViT3D:
    """The model that weights are of, on no device: it has shapes, but no values."""
    with torch.device("meta"):
        if config:
            try:
                return EfficientViT3D(**config)
            except (TypeError, ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{path}: its configuration describes no model: {error}"
                ) from error
        variant, classes = look(read_checkpoint(path))
        if run is not None:
            return create_model(
                run.model,
                classes or 400,
                temporal_strides=run.temporal_strides,
                temporal_padding=run.temporal_padding or None,
                aggregation_temporal_kernel=run.aggregation_temporal_kernel,
            )
        if variant is None:
            raise CheckpointError(f"{path}: is no EfficientViT that is known here")
        return create_model(variant, classes or 400)


def _loaded(path: Path, structure: EfficientViT3D, own: bool) -> EfficientViT3D | None:
    """The model with its weights, None where they are not finite."""
    from evit_models import load_model

    try:
        if own:
            return load_model(path).eval()
        keys = ("temporal_strides", "temporal_padding", "aggregation_temporal_kernel")
        options = {key: structure.config[key] for key in keys}
        return create_model(
            structure.name, structure.num_classes, pretrained=path, **options
        ).eval()
    except CheckpointError as error:
        if "NaN or infinity" in str(error):
            return None
        raise


def _set_frames(patient: Patient, weights: _Weights, frames: int | None) -> None:
    size = weights.data.get("input_size")
    if frames is not None:
        patient.frames, patient.frames_source = frames, "--frames"
    elif isinstance(size, list) and len(size) == 4 and type(size[1]) is int and size[1] > 0:
        patient.frames, patient.frames_source = size[1], "of training"
    elif weights.config is not None:
        patient.frames, patient.frames_source = weights.config.frames, "of training"


def _add_history(
    patient: Patient, run: Path, config: TrainConfig, states: Mapping[Path, str | None]
) -> None:
    patient.log, patient.workers = read_log(run), config.workers
    patient.problems = [f"{file.name} {reason}" for file, reason in states.items() if reason]
    patient.whole = len(states) - len(patient.problems)
    if config.pretrained:
        try:
            patient.started_from = (config.pretrained, pixel_config(config))
        except (ConfigError, CheckpointError):
            patient.started_from = None
    evaluations = [row for row in patient.log if row["kind"] == "evaluation"]
    if evaluations:
        patient.figures = {
            head: row for head, row in evaluations[-1]["heads"].items() if row["clips"]
        }
        patient.figures_source = f"evaluation at step {evaluations[-1]['step']}"


def _add_clips(
    patient: Patient, weights: _Weights, run: Path | None, overrides: dict[str, Any]
) -> None:
    problems: list[str] = []
    if run is not None:
        full = load_config(run / CONFIG_FILE)
        try:
            train_set = make_dataset(full, training=True, pixels=patient.structure.default_cfg)
            patient.train_set, patient.mix = train_set, _mixed(full, train_set)
            if isinstance(train_set.class_names, list):
                patient.class_names = train_set.class_names
        except (ConfigError, DatasetError) as error:
            problems.append(str(error))
    wanted = "eval_data" in overrides or "dataset" in overrides
    if patient.model is not None and (wanted or run is not None):
        try:
            config = run_config(run, overrides) if run else _clip_config(weights, overrides)
            subject = Subject(patient.model, config, str(weights.path))
            patient.eval_set = evaluation_clips(subject).dataset
        except (ConfigError, DatasetError, UserError) as error:
            if wanted:
                raise
            problems.append(str(error))
    patient.no_clips = "; ".join(dict.fromkeys(problems)) or _NO_DATA


def _clip_config(weights: _Weights, overrides: dict[str, Any]) -> TrainConfig:
    return checkpoint_subject(
        str(weights.path), overrides, name=weights.structure.name, classes=None, backend=None
    ).config


def _mixed(config: TrainConfig, dataset: ClipDataset) -> Mixed | None:
    mix = make_mix(config, dataset)
    if mix is None:
        return None

    def mixed(clips: Tensor, generator: np.random.Generator) -> Tensor:
        label = torch.zeros(len(clips), dtype=torch.int64)
        heads = dataset.num_classes
        labels: Any = dict.fromkeys(heads, label) if isinstance(heads, dict) else label
        return mix(clips, labels, generator)[0]

    return mixed


def _add_predictions(
    patient: Patient, run: Path | None, file: str | None, samples: int, *, given: bool
) -> None:
    path = Path(file) if file else None
    if path is None and run is not None and not given and patient.figures is None:
        saved = sorted((run / "evaluation").glob(f"{PREDICTIONS}.*"))
        path = saved[0] if saved else None
    if path is not None:
        try:
            rows = read_predictions(path)
        except OSError as error:
            raise UserError(f"--predictions: {path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"--predictions: {error}") from error
        patient.figures, patient.figures_source = _figures(rows), str(path)
    elif given and patient.eval_set is not None and patient.model is not None:
        found = predicted_figures(patient.model, patient.eval_set, samples)
        patient.figures, patient.figures_source = found, "tried on the videos"


def _figures(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found = {}
    for head in dict.fromkeys(row["head"] for row in rows):
        mine = [row for row in rows if row["head"] == head]
        labels = np.array([row["label"] for row in mine])
        best = np.array([[row["class"]] for row in mine])
        said = Predictions(np.arange(len(mine)), labels, best, np.zeros(len(mine)))
        found[head] = figures(said, int(max(labels.max(), best.max())) + 1)
    return found


def _three(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(one, (int, float)) for one in value)
    )
