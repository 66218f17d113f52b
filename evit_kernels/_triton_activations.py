"""Activations and their derivatives inside Triton kernels. Imports Triton, like _triton.py.

NaN and infinity come out as PyTorch brings them out: maxima and minima, which would hide NaN, are
written as choices. At the kinks the derivatives are PyTorch's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _exp_of_negative(x):
    """exp(-x), with the last of its values repeated where it would overflow."""
    return tl.exp(tl.where(x < -87.0, 87.0, -x))


@triton.jit
def _sigmoid(x):
    return tl.where(x < -87.0, 0.0, 1.0 / (1.0 + _exp_of_negative(x)))


@triton.jit
def _one_less_sigmoid(x):
    # By subtraction it would lose its digits where the sigmoid is near 1.
    e = _exp_of_negative(x)
    return tl.where(x > 87.0, 0.0, e / (1.0 + e))


@triton.jit
def _clamp(x, LOW: tl.constexpr, HIGH: tl.constexpr):
    x = tl.where(x < LOW, LOW, x)
    return tl.where(x > HIGH, HIGH, x)


@triton.jit
def _tanh_argument(x):
    """2 u of 0.5 x (1 + tanh u) = x sigmoid(2 u): 2 sqrt(2 / pi) (x + 0.044715 x^3)."""
    return 1.5957691216057308 * (x + 0.044715 * x * x * x)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Returns the activation, by its canonical name, of float32 values."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "relu6":
        x = _clamp(x, 0.0, 6.0)
    elif ACTIVATION == "hardswish":
        x = x * _clamp(x + 3.0, 0.0, 6.0) * (1.0 / 6.0)
    elif ACTIVATION == "gelu":
        x = x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        x = x * _sigmoid(_tanh_argument(x))
    elif ACTIVATION == "silu":
        x = x * _sigmoid(x)
    return x


@triton.jit
def differentiate(grad, x, ACTIVATION: tl.constexpr):
    """Returns `grad` times the derivative of the activation at x."""
    if ACTIVATION == "relu":
        grad = tl.where(x <= 0.0, 0.0, grad)
    elif ACTIVATION == "relu6":
        grad = tl.where((x <= 0.0) | (x >= 6.0), 0.0, grad)
    elif ACTIVATION == "hardswish":
        between = tl.where(x >= 3.0, grad, grad * (x * (1.0 / 3.0) + 0.5))
        grad = tl.where(x <= -3.0, 0.0, between)
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        grad = grad * (cdf + x * (0.3989422804014327 * tl.exp(x * x * -0.5)))
    elif ACTIVATION == "gelu_tanh":
        u = _tanh_argument(x)
        s = _sigmoid(u)
        slope = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * x * x)
        # The product with the smaller one first: x * slope alone may be infinite.
        grad = grad * (s + x * s * _one_less_sigmoid(u) * slope)
    elif ACTIVATION == "silu":
        s = _sigmoid(x)
        grad = grad * (s + x * s * _one_less_sigmoid(x))
    return grad
