"""evit_kernels.nn next to torch.nn: the same state, the same numbers, one module for the other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evit_kernels.nn import BatchNormAct3d, DepthwiseConv3d, PointwiseConv3d

FUNCTIONS = {None: nn.Identity(), "relu": F.relu, "hardswish": F.hardswish, "gelu": F.gelu}


def _clip(channels: int = 8, **options: Any) -> Tensor:
    x = torch.randn(2, channels, 4, 7, 6, **options)
    return x.contiguous(memory_format=torch.channels_last_3d)


def _assert_same(ours: nn.Module, theirs: nn.Module, activation: str | None, x: Tensor) -> None:
    """Outputs, gradients and buffers after a step in each mode."""
    for training in (True, False):
        results = []
        for module, function in ((ours, nn.Identity()), (theirs, FUNCTIONS[activation])):
            module.train(training).zero_grad()
            leaf = x.clone().requires_grad_()
            output = function(module(leaf))
            output.square().sum().backward()
            grads = [p.grad for p in module.parameters()]
            results.append([output, leaf.grad, *grads, *module.buffers()])
        for mine, pytorchs in zip(*results, strict=True):
            torch.testing.assert_close(mine, pytorchs, rtol=1e-4, atol=1e-4)


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (1, 5, 5), "stride": (1, 2, 2), "padding": (0, 2, 2), "bias": False},
    {"kernel_size": [3, 1, 1], "padding": [2, 0, 0], "dilation": [2, 1, 1]},
]


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_depthwise_is_a_conv3d(options: dict[str, Any], activation: str | None) -> None:
    ours = DepthwiseConv3d(8, **options, activation=activation)
    theirs = nn.Conv3d(8, 8, groups=8, **options)
    assert isinstance(ours, nn.Conv3d)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    _assert_same(ours, theirs, activation, _clip())


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_is_a_conv3d(bias: bool, activation: str | None) -> None:
    ours = PointwiseConv3d(8, 12, bias, activation=activation)
    theirs = nn.Conv3d(8, 12, 1, bias=bias)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    _assert_same(ours, theirs, activation, _clip())


def test_pointwise_adds_its_residual_after_the_activation() -> None:
    module = PointwiseConv3d(8, 8, activation="hardswish")
    x, residual = _clip(), _clip()
    expected = F.hardswish(F.conv3d(x, module.weight, module.bias)) + residual
    torch.testing.assert_close(module(x, residual), expected, rtol=1e-4, atol=1e-5)


NORMS: list[dict[str, Any]] = [
    {},
    {"eps": 1e-3, "momentum": 0.01},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
]


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("options", NORMS, ids=str)
def test_norm_is_a_batch_norm(options: dict[str, Any], activation: str | None) -> None:
    ours = BatchNormAct3d(8, **options, activation=activation)
    theirs = nn.BatchNorm3d(8, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    _assert_same(ours, theirs, activation, _clip() * 3 + 1)


def test_cumulative_momentum_is_the_plain_average() -> None:
    ours, theirs = BatchNormAct3d(8, momentum=None), nn.BatchNorm3d(8, momentum=None)
    means = []
    for _ in range(4):
        x = _clip()
        means.append(x.mean((0, 2, 3, 4)))
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 4


def test_plain_averages_do_not_cut_a_compiled_graph() -> None:
    norms = [BatchNormAct3d(8, momentum=None) for _ in range(2)]
    compiled = torch.compile(norms[1], fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = _clip()
        torch.testing.assert_close(compiled(x), norms[0](x))
    torch.testing.assert_close(norms[1].state_dict(), norms[0].state_dict())
    assert norms[1].num_batches_tracked == 3


def test_plain_averages_that_were_taken_away_are_not_missed() -> None:
    ours, theirs = BatchNormAct3d(8, momentum=None), nn.BatchNorm3d(8, momentum=None)
    for norm in (ours, theirs):
        norm.running_mean = norm.running_var = None
    x = _clip()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_frozen_statistics_stay() -> None:
    norm = BatchNormAct3d(8, activation="relu")
    before = copy.deepcopy(norm.state_dict())
    norm.eval()(_clip())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_mixed_precision_keeps_statistics_in_float32() -> None:
    ours, theirs = BatchNormAct3d(8), nn.BatchNorm3d(8)
    x = _clip(dtype=torch.bfloat16)
    outputs = ours(x), theirs(x)
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(*outputs, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-4, atol=1e-5)


def test_causal_sees_no_future() -> None:
    module = DepthwiseConv3d(8, 3, padding=1, temporal_padding="causal", activation="silu")
    x = _clip()
    changed = x.clone()
    changed[:, :, 2:] = torch.randn_like(changed[:, :, 2:])
    ours, other = module(x), module(changed)
    assert ours.shape == x.shape
    assert torch.equal(ours[:, :, :2], other[:, :, :2])
    assert not torch.equal(ours[:, :, 2:], other[:, :, 2:])


def test_a_single_clip_without_batch() -> None:
    module = DepthwiseConv3d(8, 3, padding=1)
    x = _clip()
    torch.testing.assert_close(module(x[0]), module(x)[0])


def _modules(backend: str | None) -> list[nn.Module]:
    return [
        DepthwiseConv3d(8, 3, padding=1, activation="relu", backend=backend),
        PointwiseConv3d(8, 8, activation="relu", backend=backend),
        BatchNormAct3d(8, activation="relu", backend=backend),
    ]


def test_backend_is_passed_on() -> None:
    x = _clip()
    for ours, reference in zip(_modules("native"), _modules("reference"), strict=True):
        reference.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(x), reference(x), rtol=1e-4, atol=1e-5)
    for module in _modules("triton"):
        with pytest.raises(RuntimeError, match="backend 'triton' is not available"):
            module(x)


def test_repr_shows_what_was_asked_for() -> None:
    depthwise, pointwise, norm = _modules("native")
    for module in (depthwise, pointwise, norm):
        assert "activation='relu', backend='native'" in repr(module)
    assert "8, 8, kernel_size=(3, 3, 3), stride=(1, 1, 1)" in repr(depthwise)
    assert "temporal_padding='zeros'" in repr(depthwise)
    assert repr(norm).startswith("BatchNormAct3d(8, eps=1e-05, momentum=0.1")


def test_device_and_dtype_are_passed_on() -> None:
    options: dict[str, Any] = {"device": "meta", "dtype": torch.float64}
    for module in (
        DepthwiseConv3d(4, 3, **options),
        PointwiseConv3d(4, 6, **options),
        BatchNormAct3d(4, **options),
    ):
        for parameter in module.parameters():
            assert (parameter.device.type, parameter.dtype) == ("meta", torch.float64)


def test_errors_come_at_construction() -> None:
    with pytest.raises(ValueError, match=r"DepthwiseConv3d: activation must be.*got 'swish'"):
        DepthwiseConv3d(4, 3, activation="swish")
    with pytest.raises(ValueError, match=r"PointwiseConv3d: activation must be.*got 'swish'"):
        PointwiseConv3d(4, 4, activation="swish")
    with pytest.raises(ValueError, match=r"BatchNormAct3d: activation must be.*got 'swish'"):
        BatchNormAct3d(4, activation="swish")
    with pytest.raises(ValueError, match=r"temporal_padding must be one of 'zeros'.*'future'"):
        DepthwiseConv3d(4, 3, temporal_padding="future")
    with pytest.raises(ValueError, match="stride must be at least 1"):
        DepthwiseConv3d(4, 3, stride=0)
