"""What `evit eval` and `evit doctor` look at: weights, and the clips that they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_models import EfficientViT3D, load_model
from evit_models.cli.common import UserError
from evit_models.cli.train import with_dataset
from evit_models.cli.weights import choose_model
from evit_models.training import TrainConfig, load_config
from evit_models.training.config import CONFIG_FILE
from evit_models.training.datasets import Classes, make_dataset
from evit_models.training.evaluation import Scores
from evit_models.training.marginals import epic_scores
from evit_models.training.objective import SINGLE, Heads
from evit_models.training.results import Names
from evit_models.training.run import BEST

if TYPE_CHECKING:
    from evit_models.video.datasets import ClipDataset

_MADE = ("motion", "dummy")
_EPIC_TARGETS = ("verb", "noun", "action")
# Keys of a run's configuration that its evaluation depends on.
_KEPT = (
    "model", "dataset", "data", "eval_data", "root", "target", "frames", "stride", "size", "views",
    "crops", "motion_clips", "workers", "worker_timeout", "eval_batch_size", "precision", "seed",
    "collective_timeout",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """Weights, and a configuration of the clips that they are evaluated on.

    Args:
        weights: where they are from. doubt: in words, what in them is random, or None.
        run: the folder of the run that made them, or None.
    """

    model: EfficientViT3D
    config: TrainConfig
    weights: str
    doubt: str | None = None
    run: Path | None = None

    @property
    def heads(self) -> Heads:
        """The model's own heads."""
        return Heads(self.model.data_cfg.get("heads") or self.model.num_classes)


@dataclass(frozen=True)
class Clips:
    """The clips of an evaluation, what is reported of them, and what their classes are called.

    Args:
        scores, sizes: see `evaluate`; None where the model's own heads are reported.
        names: of the classes, by head. ids: of the clips, where they have any.
    """

    dataset: ClipDataset
    names: Names
    scores: Scores | None = None
    sizes: dict[str, int] | None = None
    ids: list[str] | None = None


def run_config(folder: Path, overrides: dict[str, Any]) -> TrainConfig:
    """The configuration of a run's evaluation, with other data or clips where asked for."""
    if not folder.is_dir():
        hint = "; weights alone are given by --checkpoint" if folder.exists() else ""
        raise UserError(f"{folder}: is no folder of a run{hint}")
    if not (folder / CONFIG_FILE).exists():
        raise UserError(
            f"{folder}: is no folder of a run, it has no {CONFIG_FILE}; weights alone are given by "
            "--checkpoint"
        )
    everything = asdict(load_config(folder / CONFIG_FILE))
    values = {key: everything[key] for key in _KEPT}
    if "eval_data" in overrides or "dataset" in overrides:
        same = overrides.get("dataset", values["dataset"]) == values["dataset"] == "epic"
        # The training table of EPIC-Kitchens helps to number the actions of any other.
        values.update({} if same else {"data": "", "root": "", "target": "action"})
        values["eval_data"] = ""
    return load_config(overrides={**values, **overrides})


def run_subject(
    folder: Path, overrides: dict[str, Any], *, best: bool, backend: str | None
) -> Subject:
    """The weights of a run: its last ones, or those of its best evaluation."""
    config = run_config(folder, overrides)
    last = (folder / "model.safetensors").exists()
    place = folder / BEST if best or not last else folder
    if not (place / "model.safetensors").exists():
        raise UserError(f"{folder}: has no weights yet; they come with its first evaluation")
    model = load_model(place, backend=backend).eval()
    return Subject(model, config, str(place / "model.safetensors"), run=folder)


def checkpoint_subject(
    checkpoint: str,
    overrides: dict[str, Any],
    *,
    name: str | None,
    classes: int | None,
    backend: str | None,
) -> Subject:
    """Weights in a file of any known kind; the clips are those that the file names, if it does."""
    chosen = choose_model(name, checkpoint, classes=classes, temporal_strides=None, backend=backend)
    known = chosen.model.default_cfg
    _, frames, size, _ = known["input_size"]
    values = {"frames": frames, "size": size, "stride": known.get("stride") or 0}
    config = load_config(overrides={**values, **overrides, "model": chosen.model.name})
    return Subject(chosen.model, config, chosen.origin, chosen.doubt)


def data_overrides(data: str | None, dataset: str | None, root: str | None) -> dict[str, Any]:
    """Keys of a configuration for the evaluation data that a user names."""
    found: dict[str, Any] = {}
    if dataset is not None:
        found["dataset"] = dataset
    if data is not None:
        kind = with_dataset({"data": data, **found})["dataset"]
        found.update(eval_data=data, dataset=kind)
    if root is not None:
        found["root"] = root
    return found


def evaluation_clips(
    subject: Subject, *, labels: Sequence[str] | None = None, tables: Sequence[Path] = ()
) -> Clips:
    """The clips that the weights are evaluated on; a UserError where their classes differ.

    Args:
        labels: names of the classes, in place of those that the weights know.
        tables: those that number the actions of EPIC-Kitchens.
    """
    model, config = subject.model, subject.config
    if config.dataset in _MADE and (config.views > 1 or config.crops > 1):
        raise UserError(
            f"--views, --crops: have no use, clips of the set {config.dataset} have one view"
        )
    if config.dataset not in _MADE and not config.eval_data:
        raise UserError("--data: is missing; give the videos to evaluate, with their labels")
    if config.dataset == "epic":
        return _epic_clips(subject, labels, tables)
    heads = subject.heads.sizes
    if list(heads) != [SINGLE]:
        raise UserError(
            f"{_what(config)} has one label per video, the weights {subject.weights} have "
            f"{_counts(heads)}"
        )
    known = model.data_cfg.get("class_names")
    if labels is not None and len(labels) != model.num_classes:
        raise _differs("--labels", len(labels), subject)
    names = list(labels) if labels is not None else known
    dataset = _made_or_read(subject, names)
    if dataset.num_classes != model.num_classes:
        raise _differs(_what(config), dataset.num_classes, subject)
    found = dataset.class_names or names
    assert not isinstance(found, dict)
    if labels is None and known and found and known != found:
        place = next(n for n, name in enumerate(known) if name != found[n])
        raise UserError(
            f"{_what(config)} calls class {place} {found[place]!r}, the weights {subject.weights} "
            f"call it {known[place]!r}"
        )
    return Clips(dataset, {SINGLE: found})


def _made_or_read(subject: Subject, names: list[str] | None) -> ClipDataset:
    from evit_models.video.datasets import DatasetError

    config, count = subject.config, subject.model.num_classes
    # A list's own labels only tell how many classes there are at least; a folder's are all.
    classes = Classes(count, names)
    try:
        return make_dataset(
            config, training=False, pixels=subject.model.default_cfg, classes_of=classes
        )
    except DatasetError as error:
        if ": label is " not in str(error):
            raise
        raise UserError(f"{error}; the weights {subject.weights} have {count} classes") from error


def _epic_clips(subject: Subject, labels: Sequence[str] | None, tables: Sequence[Path]) -> Clips:
    from evit_models.video.datasets import EpicKitchens
    from evit_models.video.datasets.epic_kitchens import NOUNS, VERBS

    if labels is not None:
        raise UserError("--labels: has no use, EPIC-Kitchens numbers its classes")
    dataset = make_dataset(
        subject.config,
        training=False,
        pixels=subject.model.default_cfg,
        targets=_EPIC_TARGETS,
        action_csvs=tables,
    )
    assert isinstance(dataset, EpicKitchens)
    assert isinstance(dataset.num_classes, dict)
    heads, sizes = subject.heads.sizes, dataset.num_classes
    if list(heads) == [SINGLE] and heads[SINGLE] != sizes["action"]:
        raise UserError(
            f"{_what(subject.config)} has {sizes['action']} actions by its tables, the weights "
            f"{subject.weights} have {heads[SINGLE]} classes; --actions says which tables number "
            "them"
        )
    if list(heads) != [SINGLE] and heads != {"verb": VERBS, "noun": NOUNS}:
        raise UserError(
            f"{_what(subject.config)} has {VERBS} verbs and {NOUNS} nouns, the weights "
            f"{subject.weights} have {_counts(heads)}"
        )
    actions = [f"{verb}:{noun}" for verb, noun in dataset.actions]
    return Clips(
        dataset,
        {"verb": None, "noun": None, "action": actions},
        epic_scores(heads, dataset.actions, sizes),
        dict(sizes),
        [row.narration_id for row in dataset.rows],
    )


def _differs(what: str, count: object, subject: Subject) -> UserError:
    return UserError(
        f"{what} has {count} classes, the weights {subject.weights} have "
        f"{subject.model.num_classes}"
    )


def _counts(heads: dict[str, int]) -> str:
    return "heads of " + " and ".join(f"{count} {name}s" for name, count in heads.items())


def _what(config: TrainConfig) -> str:
    return f"the set {config.dataset}" if config.dataset in _MADE else config.eval_data
