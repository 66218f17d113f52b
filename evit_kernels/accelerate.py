"""Swaps the depthwise convolutions inside anybody's model for ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from evit_kernels import _checks
from evit_kernels.depthwise_conv3d.geometry import MAX_KERNEL
from evit_kernels.nn import DepthwiseConv3d, PointwiseConv3d


@dataclass(frozen=True)
class Skipped:
    """A 3-D convolution that was left as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class AccelerationReport:
    """What `accelerate` did: names as `model.named_modules()` gives them."""

    replaced: tuple[str, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        total = len(self.replaced) + len(self.skipped)
        lines = [f"{len(self.replaced)} of {total} 3-D convolutions replaced"]
        if self.replaced:
            lines.append(f"  replaced: {_listed(self.replaced)}")
        reasons: dict[str, list[str]] = {}
        for entry in self.skipped:
            reasons.setdefault(entry.reason, []).append(entry.name)
        lines += [f"  left, {reason}: {_listed(names)}" for reason, names in reasons.items()]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> AccelerationReport:
    """Makes every depthwise `nn.Conv3d` of a model compute with our kernels, in place.

    Depthwise means groups == in_channels == out_channels. No module is exchanged for another: its
    class changes, from `nn.Conv3d` to its subclass `evit_kernels.nn.DepthwiseConv3d`, which has
    the same parameters. So everything that knows the module keeps knowing it: optimisers (the
    parameters are the same objects), hooks of every kind, state dicts, names, modules registered
    twice, lists and closures outside the module tree, weight normalisation that runs as a hook,
    and the model itself, if it is nothing but a convolution.

    What cannot be computed exactly as before is left, with a reason in the report: other padding
    modes, kernels larger than 7, a padding of "same" that is not symmetric, channel multipliers,
    subclasses of `nn.Conv3d`, parametrised, lazy, scripted and quantised modules, instances whose
    `forward` was overwritten, dtypes without kernels.

    The kernels are fastest on a model and input in `torch.channels_last_3d`, and correct in any
    layout. Calling `accelerate` again changes nothing. One thing is lost: differentiating twice
    raises an error; set `module.backend = "reference"` on the modules where that is needed.

    Args:
        model: any module; trained, in training, on any device.

    Returns:
        What was replaced and what was not, with reasons; `print(report)` shows it by reason.

    Raises:
        TypeError: `model` is no `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be an nn.Module, got {type(model).__name__}")
    replaced: list[str] = []
    skipped: list[Skipped] = []
    verdicts: dict[nn.Module, str | None] = {}
    # Duplicates too: a module that is registered twice is changed once and reported by both names.
    for name, module in model.named_modules(remove_duplicate=False):
        if not _is_convolution(module):
            continue
        if module not in verdicts:
            verdicts[module] = _refusal(module)
            if verdicts[module] is None:
                _convert(module)
        reason = verdicts[module]
        label = name or "(the model itself)"
        if reason is None:
            replaced.append(label)
        else:
            skipped.append(Skipped(label, reason))
    return AccelerationReport(tuple(replaced), tuple(skipped))


def _is_convolution(module: nn.Module) -> bool:
    """Whether the report should speak of a module."""
    return (
        isinstance(module, nn.Conv3d)
        or (isinstance(module, torch.jit.ScriptModule) and module.original_name == "Conv3d")
        or (_is_quantized(module) and "Conv" in type(module).__name__ and _is_3d(module))
    )


def _refusal(module: nn.Module) -> str | None:
    """Returns why a convolution has to stay as it is, or None."""
    if not isinstance(module, nn.Conv3d):
        if _is_quantized(module):
            return "quantised: its weights are integers"
        return "scripted: TorchScript has compiled its class"
    if isinstance(module, DepthwiseConv3d | PointwiseConv3d):
        return "already ours"
    if isinstance(module, nn.LazyConv3d) or any(
        is_lazy(p) for p in module.parameters(recurse=False)
    ):
        return "lazy: its channels are unknown before the first call"
    if is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"parametrised ({names}): its class computes the parameter"
    if type(module) is not nn.Conv3d:
        return f"a subclass of nn.Conv3d, {type(module).__name__}, which may compute something else"
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return "its forward was overwritten on the instance"
    return _arithmetic_refusal(module)


def _arithmetic_refusal(module: nn.Conv3d) -> str | None:
    channels, outputs, groups = module.in_channels, module.out_channels, module.groups
    if groups != channels:
        return f"not depthwise: {channels} channels in {_count(groups, 'group')}"
    if outputs != channels:
        return f"{outputs // channels} outputs per channel instead of one"
    if module.padding_mode != "zeros":
        return f"padding_mode {module.padding_mode!r} instead of 'zeros'"
    if max(module.kernel_size) > MAX_KERNEL:
        return f"kernel {tuple(module.kernel_size)} is larger than {MAX_KERNEL}"
    if _symmetric_padding(module) is None:
        return f"padding='same' with kernel {tuple(module.kernel_size)} is not symmetric"
    if module.weight.dtype not in _checks.FLOATING:
        return f"there are no kernels for {module.weight.dtype}"
    return None


def _convert(module: nn.Module) -> None:
    assert isinstance(module, nn.Conv3d)
    padding = _symmetric_padding(module)
    assert padding is not None
    module.padding = padding
    module.__class__ = DepthwiseConv3d
    assert isinstance(module, DepthwiseConv3d)
    module.temporal_padding = "zeros"
    module.activation = None
    module.backend = None


def _symmetric_padding(module: nn.Conv3d) -> tuple[int, int, int] | None:
    """The padding as three numbers; None where one side gets more than the other."""
    if module.padding == "valid":
        return 0, 0, 0
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(total % 2 for total in totals):
            return None
        return totals[0] // 2, totals[1] // 2, totals[2] // 2
    assert not isinstance(module.padding, str)
    t, h, w = module.padding
    return t, h, w


def _is_quantized(module: nn.Module) -> bool:
    # By name: importing the quantisation packages would cost every user their import.
    return "quantized" in type(module).__module__.split(".") and not isinstance(module, nn.Conv3d)


def _is_3d(module: nn.Module) -> bool:
    return len(getattr(module, "kernel_size", ())) == 3


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
