"""Drop-in modules: the operators with parameters, initialised and saved as PyTorch's own are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evit_kernels import _activations, _checks
from evit_kernels.batch_norm_activation import batch_norm_activation
from evit_kernels.depthwise_conv3d import depthwise_conv3d
from evit_kernels.depthwise_conv3d.geometry import NAME as _DEPTHWISE
from evit_kernels.depthwise_conv3d.geometry import TEMPORAL_PADDINGS
from evit_kernels.pointwise_conv3d import pointwise_conv3d


class DepthwiseConv3d(nn.Conv3d):
    """A depthwise `nn.Conv3d` (groups = channels) with a fused activation; same state dict.

    Args:
        channels: C, of input and output.
        kernel_size, stride, padding, dilation: one int or three, for (T, H, W).
        bias: whether to learn a bias.
        temporal_padding: "zeros", "replicate" or "causal", see `depthwise_conv3d`.
        activation: None or the name of an activation, see `depthwise_conv3d`.
        backend: None for the automatic choice, or the name of a backend.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        *,
        temporal_padding: str = "zeros",
        activation: str | None = None,
        backend: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if temporal_padding not in TEMPORAL_PADDINGS:
            known = ", ".join(map(repr, TEMPORAL_PADDINGS))
            raise ValueError(
                f"DepthwiseConv3d: temporal_padding must be one of {known}, "
                f"got {temporal_padding!r}"
            )
        _activations.canonical(activation, "DepthwiseConv3d")
        super().__init__(
            channels,
            channels,
            _checks.triple(kernel_size, _DEPTHWISE, "kernel_size", 1),
            _checks.triple(stride, _DEPTHWISE, "stride", 1),
            _checks.triple(padding, _DEPTHWISE, "padding", 0),
            _checks.triple(dilation, _DEPTHWISE, "dilation", 1),
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.temporal_padding = temporal_padding
        self.activation = activation
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        """Convolves (B, C, T, H, W), or a single (C, T, H, W) as `nn.Conv3d` does."""
        if input.dim() == 4:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        return depthwise_conv3d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.dilation,
            temporal_padding=self.temporal_padding,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Adds our arguments to PyTorch's."""
        return (
            f"{super().extra_repr()}, temporal_padding={self.temporal_padding!r}, "
            f"activation={self.activation!r}, backend={self.backend!r}"
        )


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 `nn.Conv3d` with a fused activation and an optional residual; same state dict."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        *,
        activation: str | None = None,
        backend: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _activations.canonical(activation, "PointwiseConv3d")
        super().__init__(in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype)
        self.activation = activation
        self.backend = backend

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Maps (B, C_in, T, H, W) to (B, C_out, T, H, W) and adds the residual, if there is one."""
        return pointwise_conv3d(
            input,
            self.weight,
            self.bias,
            activation=self.activation,
            residual=residual,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Adds our arguments to PyTorch's."""
        return f"{super().extra_repr()}, activation={self.activation!r}, backend={self.backend!r}"


class BatchNormAct3d(nn.BatchNorm3d):
    """An `nn.BatchNorm3d` with a fused activation; same state dict."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        activation: str | None = None,
        backend: str | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _activations.canonical(activation, "BatchNormAct3d")
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self.activation = activation
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        """Normalises and activates (B, C, T, H, W)."""
        # As in nn.BatchNorm3d, whose flag may be changed after construction.
        track = self.training and self.track_running_stats
        if track and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return self._add_to_averages(input, self.num_batches_tracked)
        keep = track or not self.training
        return self._normalise(
            input,
            self.running_mean if keep else None,
            self.running_var if keep else None,
            momentum=0.0 if self.momentum is None else self.momentum,
        )

    def _add_to_averages(self, input: Tensor, batches: Tensor) -> Tensor:
        """Normalises; its statistics get the weight that a plain average over all batches gives.

        The weight stays a tensor: as a number it would make a GPU's host wait, and cut a compiled
        graph in two, at every norm.
        """
        averages = (self.running_mean, self.running_var)
        mean, variance = found = [None if x is None else torch.zeros_like(x) for x in averages]
        output = self._normalise(input, mean, variance, momentum=1.0)
        weight = batches.double().reciprocal()
        for average, value in zip(averages, found, strict=True):
            if average is not None and value is not None:
                average.lerp_(value, weight.to(average.dtype))
        return output

    def _normalise(
        self, input: Tensor, mean: Tensor | None, variance: Tensor | None, *, momentum: float
    ) -> Tensor:
        return batch_norm_activation(
            input,
            self.weight,
            self.bias,
            mean,
            variance,
            training=self.training or (self.running_mean is None and self.running_var is None),
            momentum=momentum,
            eps=self.eps,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Adds our arguments to PyTorch's."""
        return f"{super().extra_repr()}, activation={self.activation!r}, backend={self.backend!r}"
