"""What is measured on GPUs: shapes of b1 and b3, batches and dtypes, all of them or a few."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from shapes import AttentionShape, DepthwiseShape, Triple, attention_shapes, depthwise_shapes

MODELS = {
    "b1": ("efficientvit3d_b1", (1, 3, 16, 224, 224)),
    "b3": ("efficientvit3d_b3", (1, 3, 16, 288, 288)),
}
# What the targets are for comes first: time may run out.
BATCHES = (8, 64, 1)
DTYPES = ("bfloat16", "float16", "float32")
K5 = (5, 5, 5)
SELECTIONS = ("few", "all", "tiny")


@dataclass(frozen=True)
class Case:
    """A shape of a model at a batch and dtype, in a stage of the model (0 is the stem)."""

    model: str
    stage: int
    batch: int
    dtype_name: str
    shape: DepthwiseShape | AttentionShape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all tensors."""
        dtype: torch.dtype = getattr(torch, self.dtype_name)
        return dtype

    @property
    def facts(self) -> dict[str, Any]:
        """What the table needs to know of it."""
        return {
            "model": self.model,
            "stage": self.stage,
            "batch": self.batch,
            "dtype": self.dtype_name,
            **(
                {"kernel": list(self.shape.kernel), "frames": self.shape.input[2]}
                if isinstance(self.shape, DepthwiseShape)
                else {"head_dim": self.shape.head_dim}
            ),
        }

    def __str__(self) -> str:
        return f"{self.model}-{self.shape}-batch{self.batch}-{self.dtype_name}"


def depthwise_cases(selection: str) -> list[Case]:
    """Cases of depthwise convolution; few are the larger ones of every kind, in bfloat16."""
    if selection == "tiny":
        tiny = [DepthwiseShape((1, 8, 4, 6, 6), k, (1, 1, 1)) for k in ((3, 3, 3), K5)]
        settings = product(_settings("tiny"), tiny)
        return [Case("b1", 0, n, d, _with_batch(shape, n)) for (n, d), shape in settings]
    cases = [
        Case(name, _stage(clip[-1], shape), batch, dtype, _with_batch(shape, batch))
        for (batch, dtype), (name, (model, clip)) in product(_settings("all"), MODELS.items())
        for shape in depthwise_shapes(model, clip)
    ]
    if selection == "all":
        return cases
    few = [c for c in cases if c.model == "b1" and c.dtype_name == DTYPES[0] and c.batch == 8]
    # The first of every kind is the largest: a model shrinks its tensors.
    kinds: dict[tuple[Triple, object], Case] = {}
    for case in few:
        assert isinstance(case.shape, DepthwiseShape)
        kind = "strided" if max(case.shape.stride) > 1 else case.stage
        kinds.setdefault((case.shape.kernel, kind), case)
    chosen = [c for (kernel, _), c in kinds.items() if c.stage <= 2 or (kernel, c.stage) == (K5, 3)]
    usual = kinds[(3, 3, 3), 1]
    return [*chosen, replace(usual, batch=64, shape=_with_batch(usual.shape, 64))]


def attention_cases(selection: str) -> list[Case]:
    """Cases of attention; few are the larger ones, in bfloat16."""
    if selection == "tiny":
        scales = AttentionShape(((1, 48, 2, 3, 3), (1, 48, 2, 3, 3)), 16)
        return [Case("b1", 3, n, d, _with_batch(scales, n)) for n, d in _settings("tiny")]
    cases = [
        Case(name, 3 + number, batch, dtype, _with_batch(shape, batch))
        for (batch, dtype), (name, (model, clip)) in product(_settings("all"), MODELS.items())
        for number, shape in enumerate(attention_shapes(model, clip))
    ]
    if selection == "all":
        return cases
    few = [c for c in cases if c.stage == 3 and c.dtype_name == DTYPES[0] and c.batch in (8, 64)]
    return sorted(few, key=lambda c: (c.model, -c.batch))


def _settings(selection: str) -> list[tuple[int, str]]:
    if selection == "tiny":
        return [(64, "bfloat16"), (1, "float32")]
    return [(batch, dtype) for dtype in DTYPES for batch in BATCHES]


def _stage(size: int, shape: DepthwiseShape) -> int:
    """The stage whose layers make tensors of this height: every stage halves it, from the stem."""
    height = -(-shape.input[3] // shape.stride[1])
    return round(size / height).bit_length() - 2


def _with_batch(shape: Any, batch: int) -> Any:
    if isinstance(shape, DepthwiseShape):
        return replace(shape, input=(batch, *shape.input[1:]))
    return replace(shape, sources=tuple((batch, *source[1:]) for source in shape.sources))


def taps_inside(shape: DepthwiseShape) -> int:
    """How many products of a weight and an element of the input the convolution needs."""
    total = shape.input[0] * shape.input[1]
    for size, outputs, kernel, stride, padding in zip(
        shape.input[2:], shape.output[2:], shape.kernel, shape.stride, shape.padding, strict=True
    ):
        places = (o * stride + k - padding for o in range(outputs) for k in range(kernel))
        total *= sum(0 <= place < size for place in places)
    return total
