"""Calls of batch_norm_activation to try, as hypothesis strategies and for lists of parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from depthwise_cases import ACTIVATIONS, DTYPES, LAYOUTS, lay_out
from hypothesis import strategies as st
from torch import Tensor

from evit_kernels import batch_norm_activation

NAMES = ("output", "gradient of input", "gradient of weight", "gradient of bias")


@dataclass(frozen=True)
class Case:
    """One call, without its data."""

    batch: int
    channels: int
    size: tuple[int, int, int]
    training: bool = True
    activation: str | None = None
    affine: bool = True
    layout: str = "channels_last"
    dtype: torch.dtype = torch.float32
    float_parameters: bool = False  # float32 beside a shorter input, as under autocast
    mean: float = 0.5
    eps: float = 1e-5

    def label(self) -> str:
        """A short name for test reports."""
        size = "x".join(map(str, self.size))
        mode = "train" if self.training else "eval"
        return f"{self.batch}x{self.channels}x{size}-{self.layout}-{mode}"

    @property
    def parameter_dtype(self) -> torch.dtype:
        short = self.dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if short and self.float_parameters else self.dtype

    def tensors(self) -> list[Tensor]:
        """Makes input and, where there are any, weight and bias."""
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x = randn(self.batch, self.channels, *self.size) + self.mean
        tensors = [_lay_out(x.to(self.dtype), self.layout)]
        if self.affine:
            tensors.append((1 + 0.3 * randn(self.channels)).to(self.parameter_dtype))
            tensors.append(randn(self.channels).to(self.parameter_dtype))
        return tensors

    def running(self) -> list[Tensor]:
        """Makes the running mean and variance."""
        generator = torch.Generator().manual_seed(1)
        mean = self.mean + torch.randn(self.channels, generator=generator, dtype=torch.float64)
        variance = 0.5 + torch.rand(self.channels, generator=generator, dtype=torch.float64)
        return [mean.to(self.parameter_dtype), variance.to(self.parameter_dtype)]

    def call(
        self, tensors: list[Tensor], running: list[Tensor], backend: str | None = "native"
    ) -> Tensor:
        """Calls the operator with what `tensors` and `running` return, or the like."""
        input, weight, bias = tensors if self.affine else (tensors[0], None, None)
        return batch_norm_activation(
            input,
            weight,
            bias,
            *running,
            training=self.training,
            momentum=0.2,
            eps=self.eps,
            activation=self.activation,
            backend=backend,
        )

    def results(self, backend: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Output, gradients and running statistics, computed in `dtype` from the case's values."""
        tensors, running = self.tensors(), self.running()
        if dtype is not None:
            tensors = [x.to(dtype) for x in tensors]
            running = [x.to(dtype) for x in running]
        leaves = [x.detach().requires_grad_() for x in tensors]
        output = self.call(leaves, running, backend)
        generator = torch.Generator().manual_seed(2)
        grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        grad = grad.to(self.dtype).to(output.dtype)
        grads = torch.autograd.grad(output, leaves, grad)
        named = dict(zip(NAMES, (output.detach(), *grads), strict=False))
        return {**named, "running mean": running[0], "running variance": running[1]}


def _lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last_expanded":  # one frame that stands for all
        first = x[:, :, :1].contiguous(memory_format=torch.channels_last_3d)
        return first.expand(x.shape)
    return lay_out(x, layout)


def cases(dtypes: tuple[torch.dtype, ...] = DTYPES) -> st.SearchStrategy[Case]:
    """Calls of every kind; at least two values per channel, or none when not training."""
    one = st.integers(1, 9)
    return st.builds(
        Case,
        batch=st.integers(0, 3),
        channels=st.one_of(st.sampled_from([1, 8, 16, 24, 32, 64]), st.integers(1, 70)),
        size=st.tuples(st.integers(1, 4), one, st.one_of(one, st.integers(10, 70))),
        training=st.booleans(),
        activation=st.sampled_from(ACTIVATIONS),
        affine=st.booleans(),
        layout=st.sampled_from([*LAYOUTS, "channels_last_expanded"]),
        dtype=st.sampled_from(dtypes),
        float_parameters=st.booleans(),
    ).filter(lambda case: not case.training or case.batch * _product(case.size) > 1)


def _product(size: tuple[int, int, int]) -> int:
    return size[0] * size[1] * size[2]
