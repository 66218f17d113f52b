"""Failures that weights show by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evit_models.blocks import LiteMLA
from evit_models.doctor.finding import Finding, some
from evit_models.efficientvit3d import IMAGENET_MEAN, IMAGENET_STD, EfficientViT3D

_KEPT_BY_NORMS = 0.9  # what a norm keeps of its statistics at a step: 1 - momentum
_DEAD = 1e-10  # a variance that no signal has: the smallest at the start of training are near 1e-5


def non_finite_weights(tensors: Mapping[str, Tensor]) -> Finding:
    """Whether a weight is NaN or infinite."""
    name = "non_finite_weights"
    bad = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if not bad:
        return Finding(name, "ok", f"all of {len(tensors)} tensors are finite")
    return Finding(
        name,
        "broken",
        f"{len(bad)} of {len(tensors)} tensors hold NaN or infinity: {some(bad)}",
        "go back to an earlier checkpoint; train with a lower lr, a longer warm-up, clip_norm, or "
        "precision bf16 or fp32",
    )


def dead_norms(tensors: Mapping[str, Tensor]) -> Finding:
    """Whether norms let nothing through: inputs that never vary, or weights of 0."""
    name = "dead_norms"
    norms = [key.removesuffix(".running_var") for key in tensors if key.endswith(".running_var")]
    if not norms:
        return Finding(name, "unchecked", "the weights have no norms with statistics")
    if all(_untouched(tensors, norm) for norm in norms):
        return Finding(
            name,
            "warning",
            f"all {len(norms)} norms have mean 0 and variance 1, as before the first step",
            "these weights were never trained",
        )
    dead, weak = [], []
    for norm in norms:
        variance, weight = tensors[f"{norm}.running_var"], tensors.get(f"{norm}.weight")
        still = variance < _DEAD
        if weight is not None:
            still = still | (weight == 0)
        if still.all():
            dead.append(norm)
        elif still.any():
            weak.append(f"{norm} ({int(still.sum())} of {len(still)} channels)")
    if dead:
        return Finding(
            name,
            "broken",
            f"{len(dead)} of {len(norms)} norms let nothing through, their variance is below "
            f"{_DEAD:g} or their weight 0: {some(dead)}",
            "the layers before them are cut off; look for weights of 0, for decay on norms, and "
            "for layers that were frozen before they had learned",
        )
    if weak:
        return Finding(
            name,
            "warning",
            f"{len(weak)} of {len(norms)} norms have channels that let nothing through: "
            f"{some(weak)}",
            "the network is smaller than it seems; a lower lr or a longer warm-up keeps channels "
            "alive",
        )
    return Finding(name, "ok", f"all channels of {len(norms)} norms are alive")


def unsettled_norms(tensors: Mapping[str, Tensor]) -> Finding:
    """Whether norms still remember the variance of 1 that they began with.

    A norm keeps 0.9 of its statistics at every step. Layers whose inputs vary little, by 1e-5 in a
    fresh network, need more than a hundred steps before that rest is small beside the truth; before
    that, evaluation divides by far too much, however well training goes.
    """
    name = "unsettled_norms"
    counters = [key for key in tensors if key.endswith(".num_batches_tracked")]
    if not counters or not any(int(tensors[key]) for key in counters):
        return Finding(name, "unchecked", "the norms do not say how many batches they have seen")
    steps = max(int(tensors[key]) for key in counters)
    norms = [key for key in tensors if key.endswith(".running_var")]
    seen = {key: _batches(tensors, key) or steps for key in norms}
    # Of norms that saw as many batches, one below the rest shows that they did not begin with 1:
    # another whose true variances happen to lie there is not to blame.
    others = {seen[key] for key in norms if _below_rest(tensors[key], seen[key])}
    bad = [
        key.removesuffix(".running_var")
        for key in norms
        if seen[key] not in others and unsettled(tensors[key], seen[key])
    ]
    evidence = f"after {steps} batches {len(bad)} of {len(norms)} norms are still mostly the"
    if not bad:
        return Finding(name, "ok", f"{steps} batches are enough for all {len(norms)} norms")
    return Finding(
        name,
        "broken" if len(bad) > len(norms) // 4 else "warning",
        f"{evidence} variance of 1 that they began with: {some(bad)}",
        "train for 150 steps or more, with smaller batches if need be; evaluation is wrong until "
        "then",
    )


def unsettled(variance: Tensor, steps: int, *, share: float = 0.5) -> bool:
    """Whether more than a share of a norm's variances is the 1 that it began with, after steps."""
    below = _below_rest(variance, steps)
    return steps > 0 and not below and _KEPT_BY_NORMS**steps > share * float(variance.median())


def _below_rest(variance: Tensor, steps: int) -> bool:
    """Whether variances cannot have begun with 1: such weights started from others."""
    return bool((variance < 0.99 * _KEPT_BY_NORMS**steps).any())


def _batches(tensors: Mapping[str, Tensor], variance: str) -> int:
    """How many batches the norm of a running variance has seen; 0 where it does not say."""
    counter = variance.removesuffix("running_var") + "num_batches_tracked"
    return int(tensors[counter]) if counter in tensors else 0


def attention_without_time(model: EfficientViT3D, frames: int, source: str) -> Finding:
    """Whether time has shrunk to one frame before the attention, as in the published adaptation.

    Args:
        frames: of the clips. source: who says so.
    """
    name = "attention_without_time"
    if frames == 1:
        return Finding(name, "unchecked", "clips of one frame have no time")
    extents, left = {}, frames
    for info, stride in zip(model.feature_info, model.temporal_strides, strict=True):
        left = -(-left // stride)
        stage = info["module"]
        if any(isinstance(module, LiteMLA) for module in model.get_submodule(stage).modules()):
            extents[stage] = left
    strides = ",".join(map(str, model.temporal_strides))
    seen = " and ".join(f"{count} in {stage}" for stage, count in extents.items())
    evidence = (
        f"of {frames} frames ({source}), strides {strides} in time leave the attention {seen}"
    )
    blind = sum(count == 1 for count in extents.values())
    if not blind:
        return Finding(name, "ok", evidence)
    longer = model.feature_info[-1]["temporal_reduction"] + 1
    return Finding(
        name,
        "broken" if blind == len(extents) else "warning",
        evidence,
        f"train with temporal_strides tubelet or full; with these strides clips need {longer} "
        "frames or more",
    )


def blind_to_order(tensors: Mapping[str, Tensor]) -> Finding:
    """Whether no kernel tells one frame from the next, so that frames are only averaged."""
    name = "blind_to_order"
    kernels = [tensor for tensor in tensors.values() if tensor.dim() == 5]
    if not kernels:
        return Finding(name, "unchecked", "the weights are of images, which know no order")
    temporal = [kernel for kernel in kernels if kernel.shape[2] > 1]
    if not temporal:
        return Finding(
            name,
            "warning",
            "no kernel sees more than one frame: clips that differ in the order of frames get the "
            "same answer",
            "make the model with temporal_kernel 3",
        )
    using = sum(int(kernel.abs().amax((0, 1, 3, 4)).count_nonzero() > 1) for kernel in temporal)
    if using:
        return Finding(name, "ok", f"{using} of {len(temporal)} kernels weigh several frames")
    return Finding(
        name,
        "warning",
        f"all {len(temporal)} kernels weigh a single frame, as after inflation from an image",
        "train on clips, without freezing these kernels",
    )


def pixel_statistics(
    known: Mapping[str, Any], expected: Mapping[str, Any] | None, source: str
) -> Finding:
    """Whether mean and std are those that the weights were made with.

    Args:
        known: the weights' "mean" and "std", missing where they are the family's.
        expected: those of the weights that training began with, or None for the family's own.
        source: whose those are.
    """
    name = "pixel_statistics"
    family = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    found = {key: tuple(known.get(key, family[key])) for key in family}
    wanted = {key: tuple((expected or family).get(key, family[key])) for key in family}
    evidence = f"mean {_numbers(found['mean'])}, std {_numbers(found['std'])}"
    advice = (
        "clips must be normalised by what the weights were trained with, in shares of 1: correct "
        "mean and std in the weights' file, or train again"
    )
    means, deviations = found["mean"], found["std"]
    if min(means) < 0 or max(means) > 1 or min(deviations) < 0.01 or max(deviations) > 1:
        return Finding(name, "broken", f"{evidence} are not those of pixels from 0 to 1", advice)
    same = all(
        abs(one - other) < 1e-3
        for key in family
        for one, other in zip(found[key], wanted[key], strict=True)
    )
    if same:
        return Finding(name, "ok", f"{evidence}, those of {source}")
    return Finding(
        name,
        "warning" if expected is None else "broken",
        f"{evidence}; {source} has mean {_numbers(wanted['mean'])}, std {_numbers(wanted['std'])}",
        advice,
    )


def _untouched(tensors: Mapping[str, Tensor], norm: str) -> bool:
    mean = tensors.get(f"{norm}.running_mean")
    return bool((tensors[f"{norm}.running_var"] == 1).all() and (mean is None or (mean == 0).all()))


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
