"""Which model a command runs: random, or what a checkpoint says it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evit_models import EfficientViT3D, create_model, load_model
from evit_models.checkpoints.identify import identify_variant, recognise
from evit_models.checkpoints.keys import to_ours
from evit_models.checkpoints.reading import Checkpoint, read_checkpoint
from evit_models.cli.common import DEFAULT_MODEL, UserError, check_model_name, random_model

_LAST_LAYER = "head.classifier.weight"


@dataclass(frozen=True)
class Weighted:
    """A model and, in words, where its weights come from; ``doubt`` says what is random in it."""

    model: EfficientViT3D
    origin: str
    doubt: str | None


def choose_model(
    name: str | None,
    checkpoint: str | None,
    *,
    classes: int | None,
    temporal_strides: str | None,
    backend: str | None,
) -> Weighted:
    """Make the model that a user asked for by name, by checkpoint, or by both.

    A checkpoint of this package brings its configuration, any other tells its variant and its
    number of classes by its tensors; ``classes`` counts the labels and decides where no file does.
    """
    if name is not None:
        check_model_name(name)
    extra: dict[str, Any] = {}
    if temporal_strides is not None:
        extra["temporal_strides"] = temporal_strides
    if checkpoint is None:
        model = random_model(
            name or DEFAULT_MODEL, num_classes=classes or 400, backend=backend, **extra
        )
        doubt = "weights are random, so the scores mean nothing; --checkpoint gives real ones"
        return Weighted(model, "random", doubt)
    try:
        file = read_checkpoint(checkpoint)
    except (FileNotFoundError, PermissionError) as error:
        raise UserError(f"--checkpoint: {checkpoint}: cannot be opened") from error
    if file.config and name in (None, file.config.get("name")) and not extra:
        model = load_model(checkpoint, backend=backend).eval()
    else:
        variant, rows = look(file)
        model = create_model(
            name or variant or DEFAULT_MODEL,
            rows or classes or 400,
            pretrained=checkpoint,
            backend=backend,
            **extra,
        ).eval()
    report = model.load_report
    random = [] if report is None else [n for n in report.missing if n.startswith("head.")]
    doubt = f"{len(random)} tensors of the head are not in {checkpoint}: they are random"
    return Weighted(model, str(file.path), doubt if random else None)


def look(file: Checkpoint) -> tuple[str | None, int | None]:
    """The variant and the number of classes that a file's tensors show, as far as they do."""
    found = recognise(file.tensors.keys())
    if found is None:
        return None, None
    source, series = found
    shapes: dict[str, tuple[int, ...]] = {}
    for key, tensor in file.tensors.items():
        ours = key if source == "evit_models" else to_ours(key, source, series)
        if ours is not None:
            shapes[ours] = tuple(tensor.shape)
    rows = shapes.get(_LAST_LAYER, (None,))[0]
    return identify_variant(shapes)[0], rows
