"""The datasets that a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evit_models.checkpoints.data import check_data_cfg
from evit_models.checkpoints.reading import read_checkpoint
from evit_models.registry import create_model
from evit_models.training.config import TrainConfig
from evit_models.training.errors import ConfigError

if TYPE_CHECKING:
    from evit_models.training.loop import Mix
    from evit_models.video import ClipTransform, TrainTransform
    from evit_models.video.datasets import ClipDataset

_DUMMY_CLASSES = 10
_AUGMENTATION = ("flip", "color_jitter", "rand_augment", "random_erasing")
# The tables by which EPIC-Kitchens-100 numbers its actions.
_OFFICIAL = ("EPIC_100_train.csv", "EPIC_100_validation.csv")


@dataclass(frozen=True)
class Classes:
    """The classes that some clips must have: how many, and their names where they are known."""

    num_classes: int
    class_names: list[str] | None = None


def make_datasets(config: TrainConfig) -> tuple[ClipDataset, ClipDataset | None]:
    """Returns the training clips, and those of evaluation where there are any.

    Both have the classes of the training data, and the pixel statistics of `config.pretrained`.

    Raises:
        ConfigError: a missing key, or one that the kind of data has no use for.
        DatasetError: data that cannot be read so, with the file and the line.
    """
    pixels = pixel_config(config)
    train_set = make_dataset(config, training=True, pixels=pixels)
    if config.dataset not in ("motion", "dummy") and not config.eval_data:
        return train_set, None
    return train_set, make_dataset(config, training=False, pixels=pixels, classes_of=train_set)


def make_dataset(
    config: TrainConfig,
    *,
    training: bool,
    pixels: dict[str, Any],
    classes_of: ClipDataset | Classes | None = None,
    targets: Sequence[str] = (),
    action_csvs: Sequence[Path] = (),
) -> ClipDataset:
    """Returns the clips of `config.data`, or in evaluation those of `config.eval_data`.

    Args:
        pixels: "mean", "std", "crop_pct" and "interpolation", as in a model's `default_cfg`.
        classes_of: the dataset whose classes these clips have too, or those classes.
        targets: labels of EPIC-Kitchens in place of those that `config.target` asks for.
        action_csvs: the tables that number its actions, in place of those that lie beside the data.
    """
    from evit_models.video.datasets import DatasetError

    try:
        if config.dataset in ("motion", "dummy"):
            return _made(config, training, pixels)
        if config.dataset == "epic":
            return _epic(config, training, pixels, targets, action_csvs)
        return _read(config, training, pixels, classes_of)
    except DatasetError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def make_mix(config: TrainConfig, dataset: ClipDataset) -> Mix | None:
    """Returns what mixes the clips of a batch, or None."""
    if not (config.mixup or config.cutmix):
        return None
    from evit_models.video.mixing import MixClips

    return MixClips(config.mixup, config.cutmix, dataset.num_classes, config.label_smoothing)


def pixel_config(config: TrainConfig) -> dict[str, Any]:
    """Returns what the weights that a run starts from expect of pixels: see `make_dataset`."""
    with torch.device("meta"):
        expected = create_model(config.model, 1).default_cfg
    if not config.pretrained:
        return expected
    try:
        return {**expected, **check_data_cfg(read_checkpoint(config.pretrained), None)}
    except OSError as error:
        raise ConfigError(f"pretrained: {config.pretrained}: {error.strerror or error}") from error


def _made(config: TrainConfig, training: bool, pixels: dict[str, Any]) -> ClipDataset:
    from evit_models.video import datasets

    for key in (*_AUGMENTATION, "class_names", "data", "eval_data"):
        if getattr(config, key):
            raise ConfigError(f"{key}: has no use, clips of the set {config.dataset} are made")
    if config.sampling != "random":
        raise ConfigError(f"sampling: has no use, clips of the set {config.dataset} are made")
    clips = config.motion_clips if training else max(1, config.motion_clips // 5)
    if config.dataset == "dummy":
        return datasets.DummyClips(
            clips, config.frames, config.size, _DUMMY_CLASSES, training=training
        )
    return datasets.MotionClips(
        "train" if training else "validation",
        clips,
        config.frames,
        config.size,
        config.seed,
        training=training,
        mean=pixels["mean"],
        std=pixels["std"],
    )


def _epic(
    config: TrainConfig,
    training: bool,
    pixels: dict[str, Any],
    targets: Sequence[str],
    action_csvs: Sequence[Path],
) -> ClipDataset:
    from evit_models.video import datasets

    path = _path(config, training)
    if not config.root:
        raise ConfigError("root: is missing; give the folder that holds the videos")
    if config.class_names:
        raise ConfigError("class_names: has no use, EPIC-Kitchens numbers its classes")
    return datasets.EpicKitchens(
        path,
        config.root,
        targets=targets or (("verb", "noun") if config.target == "verb_noun" else "action"),
        action_csvs=action_csvs or _action_tables(config),
        **_common(config, training, pixels),
    )


def _read(
    config: TrainConfig,
    training: bool,
    pixels: dict[str, Any],
    classes_of: ClipDataset | Classes | None,
) -> ClipDataset:
    from evit_models.video import datasets

    path = _path(config, training)
    common = _common(config, training, pixels)
    names = _class_names(config.class_names) if config.class_names else None
    # As `evit prepare` leaves them beside the list of a folder.
    beside = Path(path).with_suffix(".classes.txt")
    own = _class_names(str(beside)) if config.dataset == "list" and beside.exists() else None
    if names is None and classes_of is None:
        names = own
    elif names is None and classes_of is not None:
        assert not isinstance(classes_of.class_names, dict)
        names = classes_of.class_names
    if own is not None and names is not None and own != names:
        raise ConfigError(
            f"{'data' if training else 'eval_data'}: the numbers in {path} are those of {beside}, "
            "whose classes are not those of training; prepare it with --classes"
        )
    if config.dataset == "folder":
        return datasets.VideoFolder(path, class_names=names, **common)
    count = None if classes_of is None else classes_of.num_classes
    assert not isinstance(count, dict)
    return datasets.VideoList(
        path, config.root or None, class_names=names, num_classes=count, **common
    )


def _path(config: TrainConfig, training: bool) -> str:
    key = "data" if training else "eval_data"
    path: str = getattr(config, key)
    if not path:
        raise ConfigError(f"{key}: is missing; give a list, folder or table of videos")
    return path


def _common(config: TrainConfig, training: bool, pixels: dict[str, Any]) -> dict[str, Any]:
    from evit_models.video import ClipSampling

    return {
        "sampling": ClipSampling(
            config.frames, config.stride or None, 1 if training else config.views
        ),
        "transform": transform_of(config, pixels, training=training),
        "training": training,
        "seed": config.seed,
    }


def transform_of(
    config: TrainConfig, pixels: dict[str, Any], *, training: bool
) -> TrainTransform | ClipTransform:
    """Returns what is done to the pixels of a clip in training, or in evaluation."""
    from evit_models.video import (
        ClipTransform,
        ColorJitter,
        RandAugment,
        RandomErasing,
        TrainTransform,
    )

    mean, std = tuple(pixels["mean"]), tuple(pixels["std"])
    if not training or config.sampling == "center":
        crops = 1 if training else config.crops
        return ClipTransform(
            config.size, mean, std, pixels["crop_pct"], pixels["interpolation"], crops
        )
    jitter, erasing = config.color_jitter, config.random_erasing
    return TrainTransform(
        config.size,
        mean,
        std,
        scale=(config.crop_scale, 1.0),
        flip=0.5 if config.flip else 0.0,
        rand_augment=RandAugment(magnitude=config.rand_augment) if config.rand_augment else None,
        color_jitter=ColorJitter(jitter, jitter, jitter) if jitter else None,
        erasing=RandomErasing(erasing) if erasing else None,
    )


def _action_tables(config: TrainConfig) -> list[Path]:
    """The official tables if they lie beside the data, else those of this run."""
    official = [Path(config.data or config.eval_data).parent / name for name in _OFFICIAL]
    if all(table.exists() for table in official):
        return official
    return [Path(table) for table in (config.data, config.eval_data) if table]


def _class_names(file: str) -> list[str]:
    from evit_models.video.datasets import DatasetError

    try:
        names = [line.strip() for line in Path(file).read_text("utf-8-sig").splitlines()]
    except OSError as error:
        raise DatasetError(file, f"cannot be opened: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(file, "is not UTF-8 text") from error
    if not names:
        raise DatasetError(file, "is empty, expected a class name in every line")
    for number, name in enumerate(names):
        if not name:
            raise DatasetError(file, "is empty, expected a class name", number + 1)
        if name in names[:number]:
            raise DatasetError(file, f"has the name {name!r} for the second time", number + 1)
    return names
