"""How good is a result? As good as PyTorch's in the same dtype, both measured with more digits.

The error of a tensor is the root mean square of its difference from the exact values, taken over
the whole tensor and over its worst row. Ours may be at most a factor times PyTorch's. Where PyTorch
happens to round everything correctly its error says nothing about what is reachable, so both
errors are counted from a floor of one unit in the last place of the storage type, relative to the
exact values (of the whole tensor; of the largest row): two sums of the same terms in another
order, each rounded once to storage, can differ by that much and both be right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FORWARD = 2.0
BACKWARD = 3.0


def assert_accurate(ours: Tensor, theirs: Tensor, exact: Tensor, factor: float, name: str) -> None:
    """Asserts that our error is at most `factor` times PyTorch's, whole tensor and worst row.

    Args:
        ours, theirs: results in one dtype.
        exact: the same in float64 (for float64 results: computed with more digits, then rounded).
        factor: FORWARD or BACKWARD.
        name: what is compared, for the message.
    """
    assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype} instead of {theirs.dtype}"
    assert ours.shape == theirs.shape == exact.shape, f"{name}: {ours.shape} not {exact.shape}"
    unit = torch.finfo(ours.dtype).eps
    truth = _rows(exact)
    our_error, their_error = _rows(ours) - truth, _rows(theirs) - truth
    scales = {"whole tensor": lambda x: _rms(x.flatten()), "worst row": lambda x: _rms(x).max()}
    for where, size in scales.items():
        if not truth.numel():
            continue
        got, reference = float(size(our_error)), float(size(their_error))
        floor = unit * float(size(truth))
        # What is NaN or infinite in PyTorch's result excuses nothing in ours.
        allowed = factor * (max(reference, floor) if math.isfinite(reference) else floor)
        assert got <= allowed, (
            f"{name}, {where}: error {got:.3g} is more than {factor} times PyTorch's "
            f"{reference:.3g} (one unit in the last place: {floor:.3g})"
        )


def _rows(x: Tensor) -> Tensor:
    """The last axis is a row; of kernels (C, 1, k_t, k_h, k_w), all taps of a channel."""
    x = x.detach().double().cpu()
    return x.flatten(1) if x.dim() == 5 and x.shape[1] == 1 else x.reshape(-1, x.shape[-1])


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=-1).sqrt()
