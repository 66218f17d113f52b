"""Loading: tensors of any project into a model of ours, all checks before the first assignment."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from evit_models.blocks import ATTENTION_EPS
from evit_models.checkpoints.data import check_data_cfg
from evit_models.checkpoints.identify import EXPECTED, describe, identify_variant, recognise
from evit_models.checkpoints.keys import to_ours
from evit_models.checkpoints.reading import Checkpoint, CheckpointError, read_checkpoint
from evit_models.checkpoints.report import LoadReport
from evit_models.efficientvit3d import VARIANTS, EfficientViT3D
from evit_models.inflate import check_inflation, inflate_weight

logger = logging.getLogger("evit_models")

# (attention, head's batch norm) of networks trained in other projects; None is the variant's own.
_EPSILONS: dict[str, tuple[float, float | None]] = {
    "original": (ATTENTION_EPS, None),
    "timm": (1e-5, 1e-5),
}
_COUNTER = "num_batches_tracked"


def load_pretrained(
    model: EfficientViT3D, path: str | os.PathLike[str], *, inflation: str = "center"
) -> LoadReport:
    """Loads a checkpoint of the original project, of timm or of this package into a model.

    Weights without a time axis are inflated. A classifier of another class count is left out and
    named in the report, and so is a head that the file does not have; anything else that is missing
    or does not fit is an error, and then the model is unchanged. Epsilons that differ between the
    projects become those of the file's project.

    Args:
        model: takes the weights, in its own dtype and on its own device.
        path: a .safetensors, .pt or .pth file, or a folder that holds model.safetensors.
        inflation: "center" or "mean".

    Returns:
        The report, also kept as `model.load_report` and logged under "evit_models".

    Raises:
        FileNotFoundError: no such file. CheckpointError: what the file is, what was expected.
    """
    return _load(model, read_checkpoint(path), inflation)


def load_model(path: str | os.PathLike[str], *, backend: str | None = None) -> EfficientViT3D:
    """Returns the model that `save_checkpoint` wrote, built from the file's own configuration.

    Raises:
        FileNotFoundError: no such file. CheckpointError: a file without a usable configuration.
    """
    checkpoint = read_checkpoint(path)
    if not checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.path}: holds no configuration; "
            "give its variant's name to create_model(name, pretrained=...)"
        )
    try:
        with torch.device("meta"):
            EfficientViT3D(**checkpoint.config, backend=backend)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its configuration describes no model: {error}"
        ) from error
    return _build(partial(EfficientViT3D, **checkpoint.config, backend=backend), checkpoint)


def build_pretrained(
    build: Callable[[], EfficientViT3D],
    path: str | os.PathLike[str],
    *,
    inflation: str = "center",
) -> EfficientViT3D:
    """Returns what `build` makes, with a checkpoint's weights; draws only what the file lacks."""
    return _build(build, read_checkpoint(path), inflation)


def _build(
    build: Callable[[], EfficientViT3D], checkpoint: Checkpoint, inflation: str = "center"
) -> EfficientViT3D:
    with torch.device("meta"):
        model = build()
    model.to_empty(device=torch.get_default_device())
    report = _load(model, checkpoint, inflation)
    model.init_weights(model.state_dict().keys() - {*report.loaded, *report.inflated})
    return model


def _load(model: EfficientViT3D, checkpoint: Checkpoint, inflation: str) -> LoadReport:
    check_inflation(inflation)
    source, tensors, skipped = _translate(checkpoint, model)
    state = model.state_dict()
    values: dict[str, Tensor] = {}
    inflated: list[str] = []
    problems: list[str] = []
    for name, value in tensors.items():
        target = state[name]
        if (
            name.startswith("head.classifier.")
            and value.dim() == target.dim()
            and value.shape[0] != target.shape[0]
        ):
            skipped[name] = f"{value.shape[0]} classes in the file, {target.shape[0]} in the model"
            continue
        try:
            values[name] = _fit(name, value, target, model, inflation)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if values[name].numel() != value.numel():
            inflated.append(name)
    missing = [name for name in state if name not in values and not name.endswith(_COUNTER)]
    problems += [f"{name} is missing" for name in missing if not name.startswith("head.")]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{checkpoint.path}: {'; '.join(problems[:5])}{more}")
    epsilons = _epsilons(model, source, checkpoint)
    # A fresh classifier has other classes than the file's names say.
    fresh = any(name.startswith("head.classifier.") for name in (*skipped, *missing))
    data_cfg = check_data_cfg(checkpoint, None if fresh else model.num_classes)
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)
    model.set_epsilons(*epsilons)
    model.data_cfg = data_cfg
    loaded = tuple(name for name in values if name not in inflated)
    report = LoadReport(
        str(checkpoint.path),
        source,
        model.name,
        loaded,
        tuple(inflated),
        skipped,
        tuple(missing),
    )
    model.load_report = report
    logger.log(logging.WARNING if skipped or missing else logging.INFO, "%s", report)
    return report


def _translate(
    checkpoint: Checkpoint, model: EfficientViT3D
) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Returns the source, the tensors by our names, and what the model has no place for."""
    tensors = checkpoint.tensors
    if any(key.startswith(("input_stem.", "stages.0.op_list.")) for key in tensors):
        # The original project's backbone, saved by itself.
        tensors = {f"backbone.{key}": value for key, value in tensors.items()}
    found = recognise(tensors.keys())
    if found is None:
        raise CheckpointError(f"{checkpoint.path}: {describe(tensors.keys())}; {EXPECTED}")
    source, series = found
    ours, skipped = {}, {}
    for key, value in tensors.items():
        name = key if source == "evit_models" else to_ours(key, source, series)
        if name is None:
            skipped[key] = f"{model.name} has no such tensor"
        else:
            ours[name] = value
    _check_variant(checkpoint, model, ours)
    known = model.state_dict().keys()
    for name in [name for name in ours if name not in known]:
        skipped[name] = f"{model.name} has no such tensor"
        del ours[name]
    return source, ours, skipped


def _check_variant(
    checkpoint: Checkpoint, model: EfficientViT3D, tensors: Mapping[str, Tensor]
) -> None:
    variant, seen = identify_variant({name: tuple(t.shape) for name, t in tensors.items()})
    if variant == model.name:
        return
    expected = VARIANTS[model.name]
    raise CheckpointError(
        f"{checkpoint.path}: holds an EfficientViT with {seen}, expected {model.name}: widths "
        f"{list(expected.widths)} and {list(expected.blocks)} blocks in stem and stages"
        if variant is None
        else f"{checkpoint.path}: holds the weights of {variant}, expected {model.name}"
    )


def _fit(name: str, value: Tensor, target: Tensor, model: EfficientViT3D, inflation: str) -> Tensor:
    """Returns the value in the target's shape, inflated if it knows no time, or raises why not."""
    if not name.endswith(_COUNTER) and not value.is_floating_point():
        raise CheckpointError(f"{name} is {value.dtype}, expected floating point")
    timeless = value.unsqueeze(2) if value.dim() == 4 and target.dim() == 5 else value
    same_but_time = (
        timeless.dim() == target.dim() == 5
        and timeless.shape[:2] == target.shape[:2]
        and timeless.shape[3:] == target.shape[3:]
    )
    if timeless.shape != target.shape and not (same_but_time and timeless.shape[2] == 1):
        hint = ""
        if same_but_time:
            option = "aggregation_temporal_kernel" if ".aggregate." in name else "temporal_kernel"
            hint = f"; create_model(..., {option}={timeless.shape[2]}) has that shape"
        raise CheckpointError(
            f"{name} has shape {tuple(value.shape)}, expected {tuple(target.shape)}{hint}"
        )
    smallest, largest = value.aminmax()  # one pass, and NaN comes through
    if not (torch.isfinite(smallest) and torch.isfinite(largest)):
        raise CheckpointError(f"{name} holds NaN or infinity")
    if name.endswith("running_var") and smallest < 0:
        raise CheckpointError(f"{name} holds negative variances")
    if timeless.shape == target.shape:
        return timeless
    causal = model.config["temporal_padding"] == "causal"
    return inflate_weight(timeless, target.shape[2], inflation, causal=causal)


def _epsilons(model: EfficientViT3D, source: str, checkpoint: Checkpoint) -> tuple[float, float]:
    """Returns the epsilons of attention and head that the weights were made for."""
    if source in _EPSILONS:
        attention, head_norm = _EPSILONS[source]
        return attention, VARIANTS[model.name].norm_eps if head_norm is None else head_norm
    found = {
        name: checkpoint.config.get(name, model.config[name])
        for name in ("attention_eps", "head_norm_eps")
    }
    for name, value in found.items():
        if not isinstance(value, float) or not 0.0 <= value < 1.0:
            raise CheckpointError(
                f"{checkpoint.path}: {name} must be at least 0 and below 1, got {value!r}"
            )
    return found["attention_eps"], found["head_norm_eps"]
