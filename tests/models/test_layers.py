"""Single layers: folding, temporal padding, residuals, stochastic depth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from plain2d import relative_error
from torch import nn

from evit_models import blocks, layers
from evit_models.blocks import Block, DSConv, LiteMLA, MBConv, drop_path
from evit_models.layers import (
    DenseConv3d,
    DenseConvNormAct,
    DepthwiseConvNormAct,
    GroupedPointwiseConv3d,
    LayerStyle,
    PointwiseConvNormAct,
    fold_norm,
)

STYLE = LayerStyle(activation="hardswish")


def randomized(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith(("running_var", "norm.weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(0.0, 0.3)
    return module


CONVOLUTIONS = {
    "dense": lambda **options: DenseConvNormAct(6, 6, STYLE, **options),
    "dense of few channels": lambda **options: DenseConvNormAct(3, 6, STYLE, **options),
    "dense of many channels": lambda **options: DenseConvNormAct(12, 6, STYLE, **options),
    "depthwise": lambda **options: DepthwiseConvNormAct(6, STYLE, **options),
    "pointwise": lambda **options: PointwiseConvNormAct(6, 6, STYLE, **options),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("activation", [True, False])
def test_folding_equals_convolution_then_norm(kind, activation):
    torch.manual_seed(0)
    layer = randomized(CONVOLUTIONS[kind](activation=activation)).double().eval()
    x = torch.randn(2, layer.conv.in_channels, 4, 5, 6, dtype=torch.float64)
    norm = layer.norm
    normed = F.batch_norm(
        layer.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    expected = F.hardswish(normed) if activation else normed
    residual = torch.randn_like(expected)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x, residual), expected + residual)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_folding_keeps_gradients(kind):
    """A frozen norm in a network that trains: folded and plain form have the same gradients."""
    torch.manual_seed(0)
    layer = randomized(CONVOLUTIONS[kind](activation=False)).double().eval()
    x = torch.randn(2, layer.conv.in_channels, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    parameters = [x, *layer.parameters()]
    norm = layer.norm
    plain = F.batch_norm(
        layer.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    folded = torch.autograd.grad(layer(x).square().sum(), parameters)
    direct = torch.autograd.grad(plain.square().sum(), parameters)
    for got, expected in zip(folded, direct, strict=True):
        torch.testing.assert_close(got, expected)


def test_folding_counts_in_float32_for_half_precision():
    norm = nn.BatchNorm3d(4, eps=1e-7).half()
    norm.running_var.fill_(1e-7)  # its inverse root overflows nothing in float32
    norm.weight.data.fill_(1e-3)
    weight, bias = fold_norm(torch.ones(4, 4, 1, 1, 1, dtype=torch.half), None, norm.eval())
    assert weight.dtype == bias.dtype == torch.half
    assert torch.isfinite(weight).all()
    scale = 1e-3 / (float(norm.running_var[0]) + 1e-7) ** 0.5
    torch.testing.assert_close(weight.float(), torch.full_like(weight, scale).float())


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_without_norm_bias_and_activation_stay(kind):
    torch.manual_seed(0)
    layer = randomized(CONVOLUTIONS[kind](norm=False)).double()
    assert layer.norm is None
    x = torch.randn(2, layer.conv.in_channels, 3, 4, 5, dtype=torch.float64)
    plain = layer.conv(x)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), F.hardswish(plain))


def test_norm_of_another_kind_keeps_the_activation():
    """`SyncBatchNorm.convert_sync_batchnorm` and its like put norms that know no activation."""
    torch.manual_seed(0)
    layer = PointwiseConvNormAct(6, 6, STYLE)
    layer.norm = nn.GroupNorm(2, 6)
    x = torch.randn(2, 6, 3, 4, 5)
    torch.testing.assert_close(layer(x), F.hardswish(layer.norm(layer.conv(x))))
    torch.testing.assert_close(layer(x, x), F.hardswish(layer.norm(layer.conv(x))) + x)


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 3, 3), (5, 1, 3)])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_dense_padding(channels, stride, kernel, frames):
    torch.manual_seed(0)
    x = torch.randn(2, channels, frames, 6, 5, dtype=torch.float64)
    side = kernel[0] // 2
    first, last = x[:, :, :1], x[:, :, -1:]
    padded = {
        "zeros": torch.cat([first * 0] * side + [x] + [last * 0] * side, 2),
        "replicate": torch.cat([first] * side + [x] + [last] * side, 2),
        "causal": torch.cat([first] * (2 * side) + [x], 2),
    }
    for padding, clip in padded.items():
        conv = DenseConv3d(channels, 8, kernel, stride, temporal_padding=padding).double()
        space = (kernel[1] // 2, kernel[2] // 2)
        expected = F.conv3d(clip, conv.weight, conv.bias, stride, (0, *space))
        for form in (torch.contiguous_format, torch.channels_last_3d):
            out = conv(x.contiguous(memory_format=form))
            torch.testing.assert_close(out, expected)
            assert out.is_contiguous(memory_format=torch.channels_last_3d)


def test_grouped_pointwise_is_a_grouped_convolution():
    torch.manual_seed(0)
    layer = randomized(GroupedPointwiseConv3d(12, 4)).double()
    x = torch.randn(2, 12, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv3d(x, layer.weight, groups=3))


def test_attention_of_several_scales():
    """Against softmax-free attention written out, the quadratic way, in float64."""
    torch.manual_seed(0)
    style = LayerStyle(activation="hardswish", head_dim=4, scales=(3, 5))
    layer = randomized(LiteMLA(8, style)).double().eval()
    x = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64)
    qkv = layer.qkv(x)
    parts = torch.cat([qkv, *(aggregate(qkv) for aggregate in layer.aggregate)], 1)
    q, k, v = parts.reshape(2, 3 * 2, 12, 60).split(4, dim=2)
    scores = torch.einsum("bhdn,bhdm->bhnm", q.relu(), k.relu())
    out = torch.einsum("bhnm,bhdm->bhdn", scores, v) / (scores.sum(-1).unsqueeze(2) + 1e-15)
    expected = layer.project(out.reshape(2, 24, 3, 4, 5))
    torch.testing.assert_close(layer(x), expected)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 1, 1, 2)
    out = drop_path(x, 0.3)
    kept = out.flatten(1)[:, 0] != 0
    assert (out.flatten(1) == out.flatten(1)[:, :1]).all()
    assert kept.float().mean() == pytest.approx(0.7, abs=0.03)
    torch.testing.assert_close(out[kept], x[kept] / 0.7)


@pytest.mark.parametrize("make", [DSConv, LiteMLA])
def test_residual_branch_is_computed_once(make, monkeypatch):
    torch.manual_seed(0)
    block = randomized(make(16, STYLE, residual=True, drop_path=0.5))
    calls = []
    branch = type(block).branch
    monkeypatch.setattr(
        type(block), "branch", lambda self, *args: calls.append(self) or branch(self, *args)
    )
    x = torch.randn(2, 16, 2, 4, 4)
    for mode in (True, False):
        block.train(mode)(x)
    assert len(calls) == 2


def test_stochastic_depth_only_in_training():
    torch.manual_seed(0)
    block = randomized(MBConv(4, 4, STYLE, expand_ratio=2, residual=True, drop_path=0.5))
    x = torch.randn(64, 4, 1, 3, 3)
    out = block.train()(x)
    dropped = (out == x).flatten(1).all(1)
    assert 10 < int(dropped.sum()) < 54
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_block_without_residual_has_none():
    torch.manual_seed(0)
    block = randomized(DSConv(4, STYLE)).eval()
    x = torch.randn(1, 4, 2, 3, 3)
    again = randomized(DSConv(4, STYLE, residual=True)).eval()
    again.load_state_dict(block.state_dict())
    assert isinstance(block, Block)
    assert relative_error(again(x), block(x) + x) < 1e-6


def _joined(monkeypatch):
    """Records which of the three convolutions the calls of the joining operator had."""
    calls = []
    fused = blocks.pointwise_depthwise_conv3d

    def record(x, first, *rest, **options):
        calls.append((first is not None, options["project_weight"] is not None))
        return fused(x, first, *rest, **options)

    monkeypatch.setattr(blocks, "pointwise_depthwise_conv3d", record)
    return calls


@pytest.mark.parametrize("fewer_norm", [False, True])
def test_bottleneck_is_one_call_with_the_same_bits(fewer_norm, monkeypatch):
    torch.manual_seed(0)
    calls = _joined(monkeypatch)
    block = MBConv(8, 8, STYLE, expand_ratio=4, fewer_norm=fewer_norm, residual=True)
    block = randomized(block).eval()
    x = torch.randn(2, 8, 5, 9, 11).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        expected = block.project(block.depthwise(block.expand(x)), x)
        assert not calls
        assert torch.equal(block(x), expected)
        assert calls == [(True, True)]
    # With gradients too, and what lies between is there for them.
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_separable_convolution_is_one_call_with_the_same_bits(monkeypatch):
    torch.manual_seed(0)
    calls = _joined(monkeypatch)
    block = randomized(DSConv(8, STYLE, residual=True)).eval()
    x = torch.randn(2, 8, 5, 9, 11).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        assert torch.equal(block(x), block.project(block.depthwise(x), x))
    assert calls == [(False, True)]


def test_bottleneck_steps_aside_for_hooks_replacements_backends_and_batch_statistics(monkeypatch):
    """A layer that cannot join in is called as a module; the others join where they can."""
    torch.manual_seed(0)
    calls = _joined(monkeypatch)
    block = randomized(MBConv(8, 8, STYLE, expand_ratio=4, fewer_norm=True, residual=True)).eval()
    x = torch.randn(1, 8, 4, 6, 7).contiguous(memory_format=torch.channels_last_3d)

    def gives(*joined):
        calls.clear()
        torch.testing.assert_close(block(x), expected)
        assert calls == list(joined)

    with torch.no_grad():
        expected = block(x)
        seen = []
        for name, joined in (
            ("expand", [(False, True)]),
            ("depthwise", []),
            ("project", [(True, False)]),
        ):
            layer = getattr(block, name)
            handle = layer.register_forward_hook(lambda *args: seen.append(args[-1].shape[1]))
            gives(*joined)
            handle.remove()
            setattr(block, name, _Renamed(layer))
            gives(*joined)
            setattr(block, name, layer)
            layer.conv.backend = "reference"
            gives(*joined)
            layer.conv.backend = None
            gives((True, True))
        assert seen == [32, 32, 8]
        block.project.activation = "relu"
        calls.clear()
        assert not torch.allclose(block(x), expected)  # it is applied, by the layer itself
        assert calls == [(True, False)]
        block.project.activation = None
        calls.clear()
        block.train()
        block(x)
        assert calls == [(True, False)]  # only the last has a norm


class _Renamed(nn.Module):
    """Somebody else's module in the place of a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs):
        return self.layer(*inputs)


def test_activations_are_those_of_the_operators():
    from evit_kernels import pointwise_conv3d

    x = torch.randn(1, 4, 2, 3, 3, dtype=torch.float64)
    one = torch.eye(4, dtype=torch.float64).reshape(4, 4, 1, 1, 1)
    for name in (None, "relu", "relu6", "hardswish", "gelu", "gelu_tanh", "silu"):
        fused = pointwise_conv3d(x, one, activation=name)
        torch.testing.assert_close(layers.activate(x, name), fused)
