"""Calls of depthwise_conv3d to try: shapes, windows and layouts, as hypothesis strategies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from evit_kernels import depthwise_conv3d
from evit_kernels.depthwise_conv3d.geometry import TEMPORAL_PADDINGS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATIONS = (None, "relu", "relu6", "hardswish", "gelu", "gelu_tanh", "silu")
LAYOUTS = (
    "contiguous",
    "channels_last",
    "channels_last_slice",
    "slice",
    "strided",
    "permuted",
    "offset",
    "expanded",
)
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """One call, without its data."""

    batch: int
    channels: int
    size: Triple
    kernel: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    temporal_padding: str = "zeros"
    activation: str | None = None
    bias: bool = True
    layout: str = "channels_last"
    dtype: torch.dtype = torch.float32
    parameters: str = "contiguous"

    def label(self) -> str:
        """A short name for test reports."""
        window = "x".join(map(str, self.kernel)) + "s" + "".join(map(str, self.stride))
        return f"{window}-{self.temporal_padding}-T{self.size[0]}"

    @property
    def fits(self) -> bool:
        """Whether the kernel fits the padded input, so that there is an output."""
        padding = list(self.padding)
        extra = [2 * p for p in padding]
        if self.temporal_padding == "causal":
            extra[0] = (self.kernel[0] - 1) * self.dilation[0]
        return all(
            size + more > dilation * (kernel - 1)
            for size, more, dilation, kernel in zip(
                self.size, extra, self.dilation, self.kernel, strict=True
            )
        )

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Makes input, weight and bias; weights are scaled so that outputs are of order one."""
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            numbers = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            return numbers.to(torch.get_default_device())

        t, h, w = self.size
        taps = self.kernel[0] * self.kernel[1] * self.kernel[2]
        input = lay_out(randn(self.batch, self.channels, t, h, w).to(self.dtype), self.layout)
        weight = (randn(self.channels, 1, *self.kernel) / taps**0.5).to(self.dtype)
        bias = randn(self.channels).to(self.dtype) if self.bias else None
        if self.parameters == "strided":
            weight = weight.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
            bias = None if bias is None else torch.stack([bias, bias + 1], dim=1)[:, 0]
        return input, weight, bias

    def call(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, backend: str | None = None
    ) -> Tensor:
        """Calls the operator."""
        return depthwise_conv3d(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            temporal_padding=self.temporal_padding,
            activation=self.activation,
            backend=backend,
        )


def lay_out(x: Tensor, layout: str) -> Tensor:
    """Returns a tensor of the values of `x` that lies in memory as its layout says.

    Memory around a view holds NaN: whoever reads it is found out. "expanded" repeats the first
    channel and the first frame over theirs.
    """
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "channels_last_slice":
        wide = _around(x, (0, 3, 1, 0, 2)).contiguous(memory_format=torch.channels_last_3d)
        return wide[:, 3 : 3 + x.shape[1], 1 : 1 + x.shape[2], :, 2 : 2 + x.shape[4]]
    if layout == "slice":
        wide = _around(x, (1, 2, 0, 3, 1))
        b, c, _, h, w = x.shape
        return wide[1 : 1 + b, 2 : 2 + c, :, 3 : 3 + h, 1 : 1 + w]
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    if layout == "permuted":
        return x.permute(4, 0, 2, 1, 3).contiguous().permute(1, 3, 2, 4, 0)
    if layout == "offset":
        flat = torch.cat([x.new_full((5,), torch.nan), x.flatten()])
        return flat[5:].view(x.shape)
    if layout == "expanded":
        return x[:, :1, :1].expand(x.shape)
    assert layout == "contiguous", layout
    return x


def _around(x: Tensor, border: tuple[int, ...]) -> Tensor:
    pads = [size for axis in reversed(border) for size in (axis, axis)]
    return torch.nn.functional.pad(x, pads, value=torch.nan)


def _triples(low: int, high: int) -> st.SearchStrategy[Triple]:
    one = st.integers(low, high)
    return st.tuples(one, one, one)


def cases(dtypes: tuple[torch.dtype, ...] = DTYPES, largest: int = 11) -> st.SearchStrategy[Case]:
    """Calls with every kernel up to 7, half of them on the square kernels that have a fast path."""
    kernels = st.one_of(
        st.sampled_from([(3, 3, 3), (5, 5, 5), (1, 3, 3), (1, 5, 5), (3, 1, 1), (5, 1, 1)]),
        _triples(1, 7),
    )
    strides = st.one_of(st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 2, 2)]), _triples(1, 3))
    return st.builds(
        Case,
        batch=st.integers(0, 3).map(lambda n: min(n, 2)),
        channels=st.one_of(st.sampled_from([1, 8, 16, 24, 32]), st.integers(1, 70)),
        size=_triples(1, largest),
        kernel=kernels,
        stride=strides,
        padding=_triples(0, 4),
        dilation=st.one_of(st.just((1, 1, 1)), _triples(1, 2)),
        temporal_padding=st.sampled_from(TEMPORAL_PADDINGS),
        activation=st.sampled_from(ACTIVATIONS),
        bias=st.booleans(),
        layout=st.sampled_from(LAYOUTS),
        dtype=st.sampled_from(dtypes),
        parameters=st.sampled_from(["contiguous", "strided"]),
    ).filter(lambda case: case.fits)
