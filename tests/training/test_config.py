"""Configurations: presets, files and single values, and what is refused by name."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from evit_models.training import PRESETS, ConfigError, TrainConfig, load_config
from evit_models.training.config import parse_overrides


@pytest.mark.parametrize("preset", PRESETS)
def test_written_and_read_back(preset: str, tmp_path: Path) -> None:
    config = load_config(preset=preset, overrides={"data": 'a "quoted" \\ name é.txt', "lr": 1e-5})
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(file) == config


def test_file_over_preset_and_values_over_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("epochs = 3\nsize = 32\nlr = 1\n")
    config = load_config(file, preset="motion", overrides={"size": 64})
    assert (config.epochs, config.size, config.lr) == (3, 64, 1.0)
    assert config.model == PRESETS["motion"]["model"]


def test_overrides_are_toml_or_text() -> None:
    pairs = ["lr=1e-3", "flip=true", "epochs = 7", "data=/videos/my list.txt", 'root=""']
    assert parse_overrides(pairs) == {
        "lr": 1e-3,
        "flip": True,
        "epochs": 7,
        "data": "/videos/my list.txt",
        "root": "",
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"learning_rate": 1}, "learning_rate is no key of a training configuration"),
        ({"epoch": 1}, "did you mean epochs"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be an integer, got 2.5"),
        ({"epochs": True}, "epochs must be an integer, got True"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"flip": 1}, "flip must be true or false, got 1"),
        ({"model": 3}, "model must be a string, got 3"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1, got 1.0"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1"),
        ({"crops": 2}, "crops must be 1 or 3"),
        ({"target": "verb_noun"}, "target must be action, unless dataset is epic"),
    ],
)
def test_refused_by_name(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        load_config(overrides=overrides)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = ", "is not TOML"),
        ("epochz = 3", "run.toml: epochz is no key"),
        ("epochs = -3", "run.toml: epochs must be at least 1"),
    ],
)
def test_refused_file(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(file)


def test_refused_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: No such file"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="preset: 'imagenet' is none of ek100, kinetics, motion"):
        load_config(preset="imagenet")
    with pytest.raises(ConfigError, match="'lr' is not key=value"):
        parse_overrides(["lr"])


def test_differences_are_those_that_matter() -> None:
    config = TrainConfig()
    assert replace(config, workers=7, log_steps=9).differences(config) == []
    assert replace(config, lr=1.0).differences(config) == ["lr is 1.0, was 0.001"]


def test_every_key_is_explained() -> None:
    text = TrainConfig.__doc__ or ""
    missing = [key for key in asdict(TrainConfig()) if key not in text]
    assert missing == []
