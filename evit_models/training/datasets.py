"""The datasets that a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evit_models.training.config import TrainConfig
from evit_models.training.errors import ConfigError

if TYPE_CHECKING:
    from evit_models.training.loop import Mix
    from evit_models.video.datasets import ClipDataset

_DUMMY_CLASSES = 10


def make_datasets(config: TrainConfig) -> tuple[ClipDataset, ClipDataset | None]:
    """Returns the training clips, and those of evaluation where there are any.

    Raises:
        ConfigError: a missing key, or data that does not fit it, with the line where there is one.
    """
    if config.dataset in ("motion", "dummy"):
        return make_dataset(config, training=True), make_dataset(config, training=False)
    if not config.data:
        raise ConfigError("data: is missing; give the list, folder or table of training videos")
    return make_dataset(config, training=True), (
        make_dataset(config, training=False) if config.eval_data else None
    )


def make_dataset(config: TrainConfig, *, training: bool) -> ClipDataset:
    """Returns the clips of `config.data`, or in evaluation those of `config.eval_data`."""
    from evit_models.video import datasets

    try:
        if config.dataset == "motion":
            return datasets.MotionClips(
                "train" if training else "validation",
                config.motion_clips if training else max(1, config.motion_clips // 5),
                config.frames,
                config.size,
                config.seed,
                training=training,
            )
        if config.dataset == "dummy":
            clips = config.motion_clips if training else max(1, config.motion_clips // 5)
            return datasets.DummyClips(
                clips, config.frames, config.size, _DUMMY_CLASSES, training=training
            )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    raise ConfigError(f"dataset: {config.dataset} is not there yet")


def make_mix(config: TrainConfig, dataset: ClipDataset) -> Mix | None:
    """Returns what mixes the clips of a batch, or None."""
    if not (config.mixup or config.cutmix):
        return None
    from evit_models.video.mixing import MixClips

    return MixClips(config.mixup, config.cutmix, dataset.num_classes, config.label_smoothing)
