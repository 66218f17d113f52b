"""Calls of pointwise_conv3d to try: shapes and layouts, as hypothesis strategies."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from depthwise_cases import ACTIVATIONS, DTYPES, LAYOUTS, Triple, lay_out
from hypothesis import strategies as st
from torch import Tensor

from evit_kernels import pointwise_conv3d


@dataclass(frozen=True)
class Case:
    """One call, without its data. Residual and bias are there or not; each has a layout."""

    batch: int
    in_channels: int
    out_channels: int
    size: Triple
    activation: str | None = None
    bias: bool = True
    residual: str | None = None  # its layout
    layout: str = "channels_last"
    dtype: torch.dtype = torch.float32
    parameters: str = "contiguous"
    groups: int = 1

    def label(self) -> str:
        """A short name for test reports."""
        size = "x".join(map(str, (self.batch, *self.size)))
        groups = f"g{self.groups}" if self.groups > 1 else ""
        return f"{self.in_channels}-{self.out_channels}{groups}-{size}"

    def tensors(self, seed: int = 0) -> dict[str, Tensor]:
        """Makes the arguments by name; weights are scaled so that outputs are of order one."""
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        depth = self.in_channels // self.groups
        tensors = {
            "input": lay_out(randn(self.batch, self.in_channels, *self.size), self.layout),
            "weight": (randn(self.out_channels, depth, 1, 1, 1) / depth**0.5).to(self.dtype),
        }
        if self.bias:
            tensors["bias"] = randn(self.out_channels)
        if self.residual is not None:
            value = randn(self.batch, self.out_channels, *self.size)
            tensors["residual"] = lay_out(value, self.residual)
        if self.parameters == "strided":
            tensors["weight"] = tensors["weight"].transpose(0, 1).contiguous().transpose(0, 1)
            if self.bias:
                tensors["bias"] = torch.stack([tensors["bias"], tensors["bias"] + 1], dim=1)[:, 0]
        return tensors

    def leaves(self, seed: int = 0) -> dict[str, Tensor]:
        """The arguments as leaves of autograd: the views themselves, with their strides."""
        return {name: x.detach().requires_grad_() for name, x in self.tensors(seed).items()}

    def call(self, tensors: dict[str, Tensor], backend: str | None = None) -> Tensor:
        """Calls the operator."""
        return pointwise_conv3d(
            **tensors, groups=self.groups, activation=self.activation, backend=backend
        )


def cases(dtypes: tuple[torch.dtype, ...] = DTYPES) -> st.SearchStrategy[Case]:
    """Any number of channels, with those in favour that fill whole vectors, and one."""
    channels = st.one_of(st.sampled_from([1, 8, 16, 32, 48, 64]), st.integers(1, 100))
    groups = st.sampled_from([1, 1, 1, 2, 3, 8])

    def case(groups: int, in_channels: int, out_channels: int, **rest: Any) -> Case:
        # Per group: as many groups as there are, within about the same number of channels.
        sizes = (ceil(in_channels / groups) * groups, ceil(out_channels / groups) * groups)
        return Case(in_channels=sizes[0], out_channels=sizes[1], groups=groups, **rest)

    return st.builds(
        case,
        groups=groups,
        batch=st.integers(0, 3).map(lambda n: min(n, 2)),
        in_channels=channels,
        out_channels=channels,
        size=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
        activation=st.sampled_from(ACTIVATIONS),
        bias=st.booleans(),
        residual=st.one_of(st.none(), st.sampled_from(LAYOUTS)),
        layout=st.sampled_from(LAYOUTS),
        dtype=st.sampled_from(dtypes),
        parameters=st.sampled_from(["contiguous", "strided"]),
    )
