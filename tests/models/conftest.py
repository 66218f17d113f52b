"""Shared by the model tests: plain 2-D networks with random weights, saved once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from plain2d import images, make_plain
from torch import Tensor


class Reference(NamedTuple):
    """A plain 2-D network's checkpoint with the original's names, and what it answers to images."""

    path: Path
    tensors: dict[str, Tensor]
    images: Tensor
    logits: Tensor
    features: list[Tensor]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Makes the reference of a variant, "b0" to "l3", once."""
    folder = tmp_path_factory.mktemp("plain2d")

    @cache
    def make(variant: str) -> Reference:
        model = make_plain(variant)
        path = folder / f"{variant}.pt"
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
        clips = images(2, seed=5)
        # In float64: rounding errors of a network of so many layers come near the bounds already,
        # and differ with what the machine's instructions make of float32.
        exact = deepcopy(model).double()
        with torch.no_grad():
            logits, features = exact(clips.double()), exact.features(clips.double())
        return Reference(
            path, model.state_dict(), clips, logits.float(), [x.float() for x in features]
        )

    return make


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Small tensors are fastest on one thread, and so are two cores that others use too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
