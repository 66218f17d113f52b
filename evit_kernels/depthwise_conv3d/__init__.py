"""Depthwise 3-D convolution with its bias and activation fused into one pass.

Read in this order: this file (meaning), reference.py (definition), op.py (registration with torch),
native.py (the compiled core), triton.py (Triton kernels); geometry.py holds the sizes that all of
them share.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evit_kernels import _activations, _autocast, _calls, backends
from evit_kernels.depthwise_conv3d import geometry as _geometry
from evit_kernels.depthwise_conv3d import op, reference

_CALLS = _calls.Calls()


def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    temporal_padding: str = "zeros",
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolves every channel of a clip with a kernel of its own, adds a bias, then activates.

    Equivalent to, with `temporal_padding="zeros"` and `activation="hardswish"`:

        F.hardswish(F.conv3d(input, weight, bias, stride, padding, dilation, groups=input.shape[1]))

    Args:
        input: (B, C, T, H, W), float32, float16, bfloat16 or float64, any strides.
        weight: (C, 1, k_t, k_h, k_w), each k from 1 to 7, dtype and device of `input`.
        bias: (C,) or None.
        stride: steps along (T, H, W), one int or three, at least 1.
        padding: border along (T, H, W), one int or three, at least 0; zeros in H and W.
        dilation: spacing of the taps along (T, H, W), one int or three, at least 1.
        temporal_padding: what stands before and after the clip: "zeros"; "replicate", its first and
            last frame; "causal", its first frame (k_t - 1) * dilation times on the left and nothing
            on the right, whatever padding[0] says.
        activation: None, "relu", "relu6", "hardswish", "gelu", "gelu_tanh" or "silu".
        backend: None for the automatic choice, or "reference", "native", "triton".

    Returns:
        (B, C, T', H', W') in the dtype and memory format of `input`; sums are float32 (float64 for
        float64), whatever the storage.

    Raises:
        ValueError: wrong rank, sizes or names. TypeError: wrong types or mixed dtypes.
        RuntimeError: mixed devices, a backend that cannot serve, a second derivative.
    """
    input, weight, bias = _autocast.to_lower_precision(input, weight, bias)
    options = (stride, padding, dilation, temporal_padding, activation)
    tensors = (input, weight, bias)
    found = _CALLS.call(tensors, options, backend)
    if isinstance(found, Tensor):
        return found
    key, known = found
    if known is None:
        window = _geometry.make(input, weight, bias, stride, padding, dilation, temporal_padding)
        function = _activations.canonical(activation, _geometry.NAME)
        chosen = backends.select(_geometry.NAME, backend, input)
        direct = key and _calls.direct(op.BACKENDS, chosen, *tensors, window, function)
        known = _CALLS.learn(key, tensors, chosen, (window, function), direct)
    window, function = known.arguments
    if known.backend == "reference":
        return reference.depthwise_conv3d(input, weight, bias, window, function)
    return op.depthwise_conv3d(input, weight, bias, window, function, known.backend, known.direct)
