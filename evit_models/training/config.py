"""One dataclass says everything about a run: from a preset, a TOML file and single values.

TOML, because it is typed and Python reads it by itself: YAML takes ``1e-3`` for a string and ``no``
for false. All values are flat, so writing them needs no library.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from evit_models.training.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FILE = "config.toml"

_CHOICES: dict[str, tuple[str, ...]] = {
    "dataset": ("list", "folder", "epic", "motion", "dummy"),
    "target": ("action", "verb_noun"),
    "inflation": ("center", "mean"),
    "freeze": ("none", "backbone", "spatial", "norm"),
    "sampling": ("random", "center"),
    "parallel": ("ddp", "fsdp"),
    "optimizer": ("adamw", "sgd"),
    "precision": ("fp32", "bf16", "fp16"),
}
_AT_LEAST: dict[str, float] = {
    "frames": 1,
    "stride": 0,
    "size": 8,
    "views": 1,
    "motion_clips": 1,
    "workers": 0,
    "worker_timeout": 1,
    "epochs": 1,
    "batch_size": 1,
    "accumulation": 1,
    "eval_batch_size": 1,
    "lr": 0,
    "final_lr": 0,
    "weight_decay": 0,
    "warmup_epochs": 0,
    "clip_norm": 0,
    "mixup": 0,
    "cutmix": 0,
    "color_jitter": 0,
    "rand_augment": 0,
    "max_skipped": 1,
    "checkpoint_steps": 0,
    "eval_epochs": 1,
    "log_steps": 1,
    "collective_timeout": 1,
    "seed": 0,
}
_SHARES = (  # at least 0 and below 1
    "drop_path",
    "dropout",
    "label_smoothing",
    "momentum",
    "beta2",
    "ema_decay",
    "random_erasing",
)

#: Keys that may change between the parts of one run: its result does not depend on them.
FREE_ON_RESUME = frozenset(
    {
        "workers",
        "worker_timeout",
        "collective_timeout",
        "checkpoint_steps",
        "log_steps",
        "tensorboard",
        "eval_batch_size",
        "root",
    }
)


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Counts of samples are per process; times are in seconds.

    Args:
        model: a name of `evit_models.list_models()`.
        pretrained: weights to start from, of images or clips; "" draws them.
        temporal_strides, temporal_padding, aggregation_temporal_kernel, inflation, drop_path,
            dropout: as in `create_model`; a padding of "" is the default of the strides.
        freeze: "none"; "backbone" trains the head alone; "spatial" trains the head and kernels
            that see more than one frame; "norm" keeps norms and their statistics.
        cache: folder that keeps what a frozen backbone makes of every clip, so that it is computed
            once; "" is none. It needs freeze "backbone" and sampling "center".
        dataset, data, eval_data: what is trained on, what is evaluated, and of which kind: "list"
            (files of `path label`), "folder" (a folder per class), "epic" (EPIC-Kitchens CSV),
            "motion" and "dummy" (made, not read).
        root: folder that paths in lists are relative to, "" is the list's own; the folder of the
            videos of EPIC-Kitchens.
        target: of EPIC-Kitchens: one "action" head, or two heads, "verb_noun".
        class_names: file with a name a line; "" takes those that the dataset knows: of folders, or
            LIST.classes.txt beside LIST.txt, as `evit prepare` writes it.
        frames, stride, size: a clip of `frames` frames, `stride` apart (0 spreads them over the
            video), `size` x `size` pixels.
        sampling: of training: "random" frames and crops, or "center", where nothing is drawn and
            clips are those of evaluation.
        views, crops: clips per video and squares per clip in evaluation.
        motion_clips: clips of the set "motion" or "dummy"; a fifth as many for evaluation.
        flip, color_jitter, rand_augment, random_erasing, crop_scale: augmentation; flip must stay
            off where labels have a direction. color_jitter is of brightness, contrast and
            saturation, rand_augment a magnitude to 10, 0 is none; random_erasing is a probability,
            crop_scale the least share of the frame that a crop takes.
        mixup, cutmix: alpha of the Beta distributions, 0 is none.
        workers: processes that read clips; worker_timeout: longest wait for one.
        eval_batch_size: videos in a batch of evaluation.
        epochs, batch_size, accumulation: an optimiser step takes batch_size x accumulation clips
            in every process.
        optimizer, lr, final_lr, warmup_epochs: lr rises linearly, then falls by a cosine to
            final_lr x lr. lr is for the whole step; it is not scaled by the batch size.
        momentum, beta2: of SGD, and both of AdamW. label_smoothing: share of the other classes.
        weight_decay: decoupled, on matrices and kernels only. layer_decay: lr of a block as a share
            of the next one's, 1 is none.
        clip_norm: largest gradient norm, 0 is none. ema_decay: of the averaged weights, 0 is none.
        precision: "bf16" and "fp16" are autocast; fp16 scales the loss.
        activation_checkpointing: computes blocks twice, to keep less. compile: `torch.compile`.
        parallel: what torchrun's processes share: "ddp" has a whole model in each, "fsdp" a share
            of parameters, gradients and the optimiser's state.
        sync_norm: norms see the clips of all processes (GPU only).
        deterministic: PyTorch's deterministic operators, where there are any.
        seed: of weights, order, augmentation and everything else that is random.
        max_skipped: steps in a row without a finite loss and gradient, after which the run ends.
        checkpoint_steps: steps between checkpoints, besides the one of every epoch; 0 is none.
        eval_epochs: epochs between evaluations; the last epoch is always evaluated.
        log_steps: steps between lines of the log. tensorboard: writes for TensorBoard too.
        collective_timeout: longest wait for another process.
    """

    model: str = "efficientvit3d_b1"
    pretrained: str = ""
    temporal_strides: str = "tubelet"
    temporal_padding: str = ""
    aggregation_temporal_kernel: int = 5
    inflation: str = "center"
    drop_path: float = 0.0
    dropout: float = 0.0
    freeze: str = "none"
    cache: str = ""

    dataset: str = "list"
    data: str = ""
    eval_data: str = ""
    root: str = ""
    target: str = "action"
    class_names: str = ""
    frames: int = 16
    stride: int = 0
    size: int = 224
    sampling: str = "random"
    views: int = 1
    crops: int = 1
    motion_clips: int = 1000
    flip: bool = False
    color_jitter: float = 0.0
    rand_augment: float = 0.0
    random_erasing: float = 0.0
    crop_scale: float = 0.5
    mixup: float = 0.0
    cutmix: float = 0.0
    workers: int = 2
    worker_timeout: float = 120.0

    epochs: int = 30
    batch_size: int = 8
    accumulation: int = 1
    eval_batch_size: int = 8
    optimizer: str = "adamw"
    lr: float = 1e-3
    final_lr: float = 0.01
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    label_smoothing: float = 0.0

    precision: str = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    parallel: str = "ddp"
    sync_norm: bool = False
    deterministic: bool = True
    seed: int = 0
    max_skipped: int = 10
    checkpoint_steps: int = 0
    eval_epochs: int = 1
    log_steps: int = 1
    tensorboard: bool = False
    collective_timeout: float = 600.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                _refuse(name, getattr(self, name), f"one of {', '.join(choices)}")
        for name, least in _AT_LEAST.items():
            if not getattr(self, name) >= least:
                _refuse(name, getattr(self, name), f"at least {least}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                _refuse(name, getattr(self, name), "at least 0 and below 1")
        for name in ("layer_decay", "crop_scale"):
            if not 0 < getattr(self, name) <= 1:
                _refuse(name, getattr(self, name), "above 0 and at most 1")
        if self.crops not in (1, 3):
            _refuse("crops", self.crops, "1 or 3")
        if self.target == "verb_noun" and self.dataset != "epic":
            _refuse("target", self.target, "action, unless dataset is epic")
        self._check_together()

    def _check_together(self) -> None:
        """Refuses values that are right by themselves, but not with each other."""
        if self.sampling == "center":
            for name in ("flip", "color_jitter", "rand_augment", "random_erasing"):
                if getattr(self, name):
                    _refuse(name, getattr(self, name), "off: sampling center draws nothing")
        if self.parallel == "fsdp" and self.precision == "fp16":
            _refuse("precision", "fp16", "bf16 or fp32: each process of fsdp sees its own overflow")
        if self.parallel == "fsdp" and self.compile:
            _refuse("compile", True, "false with parallel fsdp")
        if not self.cache:
            return
        if self.freeze != "backbone":
            _refuse("freeze", self.freeze, "backbone: a cache keeps what does not change any more")
        if self.sampling != "center":
            _refuse("sampling", self.sampling, "center: a cache keeps one clip of every video")
        if self.dataset not in ("list", "folder", "epic"):
            _refuse("dataset", self.dataset, "list, folder or epic: a cache is for videos of files")
        for name in ("mixup", "cutmix", "drop_path"):
            if getattr(self, name):
                _refuse(name, getattr(self, name), "0: it changes what a cache would keep")
        if self.parallel == "fsdp":
            _refuse("parallel", "fsdp", "ddp: with a cache only the head is trained")

    def differences(self, other: TrainConfig) -> list[str]:
        """Returns keys whose values differ and that the result depends on, as "key: a, not b"."""
        return [
            f"{field.name} is {getattr(self, field.name)!r}, was {getattr(other, field.name)!r}"
            for field in fields(self)
            if field.name not in FREE_ON_RESUME
            and getattr(self, field.name) != getattr(other, field.name)
        ]

    def to_toml(self) -> str:
        """Returns the configuration as a TOML file; JSON values are TOML values."""
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in asdict(self).items())


#: What the runs are made of that people know by name; everything else is the default.
PRESETS: dict[str, dict[str, Any]] = {
    "ek100": {
        "dataset": "epic",
        "target": "action",
        "epochs": 30,
        "lr": 5e-4,
        "warmup_epochs": 2.0,
        "drop_path": 0.1,
        "dropout": 0.3,
        "ema_decay": 0.9998,
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
        "rand_augment": 7.0,
        "random_erasing": 0.25,
        "layer_decay": 0.8,
        "precision": "bf16",
        "views": 2,
        "crops": 3,
    },
    "kinetics": {
        "epochs": 50,
        "stride": 4,
        "lr": 1e-3,
        "warmup_epochs": 5.0,
        "drop_path": 0.1,
        "dropout": 0.2,
        "ema_decay": 0.9998,
        "flip": True,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "rand_augment": 7.0,
        "random_erasing": 0.25,
        "precision": "bf16",
        "views": 4,
        "crops": 3,
    },
    "motion": {
        "dataset": "motion",
        "model": "efficientvit3d_b0",
        "frames": 8,
        "size": 48,
        "motion_clips": 600,
        "workers": 0,
        "epochs": 12,
        "batch_size": 16,
        "eval_batch_size": 32,
        "lr": 3e-3,
        "weight_decay": 0.02,
    },
}


def load_config(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Returns the preset, changed by the file, changed by the overrides.

    Raises:
        ConfigError: an unknown preset or key, or a value of the wrong type or range, by its name.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset: {preset!r} is none of {', '.join(PRESETS)}")
    values: dict[str, Any] = dict(PRESETS[preset]) if preset else {}
    if path is not None:
        values.update(_read(Path(path)))
    values.update(overrides or {})
    return _build(values, "" if path is None else f"{path}: ")


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Returns values of ``key=value`` texts; a value is TOML, or else a plain string."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set: {pair!r} is not key=value")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    return table


def _build(values: Mapping[str, Any], where: str) -> TrainConfig:
    hints = get_type_hints(TrainConfig)
    checked = {}
    for key, value in values.items():
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"{where}{key} is no key of a training configuration{hint}")
        checked[key] = _typed(key, value, hints[key], where)
    try:
        return TrainConfig(**checked)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def _typed(key: str, value: Any, hint: Any, where: str) -> Any:
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not NoneType]
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) not in kinds:
        names = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
        raise ConfigError(f"{where}{key} must be {names[kinds[0]]}, got {value!r}")
    return value


def _refuse(key: str, value: Any, expected: str) -> None:
    raise ConfigError(f"{key} must be {expected}, got {value!r}")
