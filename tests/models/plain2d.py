"""The 2-D EfficientViT classifiers in plain torch.nn, named as in the original project.

Written for these tests and independent of the package's layers: it is what inflated networks are
compared with, and what makes checkpoints to load. `timm_names` renames a checkpoint to timm's.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# name: (widths, depths, head width of the attention, widths of the head, eps of all norms)
TABLE = {
    "b0": ((8, 16, 32, 64, 128), (1, 2, 2, 2, 2), 16, (1024, 1280), 1e-5),
    "b1": ((16, 32, 64, 128, 256), (1, 2, 3, 3, 4), 16, (1536, 1600), 1e-5),
    "b2": ((24, 48, 96, 192, 384), (1, 3, 4, 4, 6), 32, (2304, 2560), 1e-5),
    "b3": ((32, 64, 128, 256, 512), (1, 4, 6, 6, 9), 32, (2304, 2560), 1e-5),
    "l0": ((32, 64, 128, 256, 512), (1, 1, 1, 4, 4), 32, (3072, 3200), 1e-6),
    "l1": ((32, 64, 128, 256, 512), (1, 1, 1, 6, 6), 32, (3072, 3200), 1e-7),
    "l2": ((32, 64, 128, 256, 512), (1, 2, 2, 8, 8), 32, (3072, 3200), 1e-7),
    "l3": ((64, 128, 256, 512, 1024), (1, 2, 2, 8, 8), 32, (6144, 6400), 1e-7),
}


class ConvLayer(nn.Module):
    def __init__(self, cin, cout, k=1, s=1, groups=1, bias=False, norm=True, act=None):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, s, k // 2, groups=groups, bias=bias)
        if norm:
            self.norm = nn.BatchNorm2d(cout)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if hasattr(self, "norm"):
            x = self.norm(x)
        return x if self.act is None else self.act(x)


class Chain(nn.Module):
    """Layers by name, one after the other."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def ds_conv(c, act):
    return Chain(
        depth_conv=ConvLayer(c, c, 3, groups=c, act=act),
        point_conv=ConvLayer(c, c),
    )


def mb_conv(cin, cout, act, ratio, s=1, fewer=False):
    mid = cin * ratio
    return Chain(
        inverted_conv=ConvLayer(cin, mid, bias=fewer, norm=not fewer, act=act),
        depth_conv=ConvLayer(mid, mid, 3, s, groups=mid, bias=fewer, norm=not fewer, act=act),
        point_conv=ConvLayer(mid, cout),
    )


def fused_mb_conv(cin, cout, act, ratio, s=1):
    return Chain(
        spatial_conv=ConvLayer(cin, cin * ratio, 3, s, act=act),
        point_conv=ConvLayer(cin * ratio, cout),
    )


def res_block(c, act):
    return Chain(conv1=ConvLayer(c, c, 3, act=act), conv2=ConvLayer(c, c, 3))


class LiteMLA(nn.Module):
    def __init__(self, c, d, eps):
        super().__init__()
        self.d, self.eps = d, eps
        heads = c // d
        self.qkv = ConvLayer(c, 3 * heads * d, norm=False)
        width = 3 * heads * d
        self.aggreg = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False),
                    nn.Conv2d(width, width, 1, groups=3 * heads, bias=False),
                )
            ]
        )
        self.proj = ConvLayer(2 * heads * d, c)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.qkv(x)
        both = torch.cat([qkv, self.aggreg[0](qkv)], 1).reshape(b, -1, 3 * self.d, h * w)
        q, k, v = both.split(self.d, dim=2)  # (b, heads, d, tokens)
        q, k = q.relu(), k.relu()
        weights = torch.einsum("bhdn,bhdm->bhnm", q, k)
        out = torch.einsum("bhnm,bhdm->bhdn", weights, v)
        out = out / (weights.sum(-1).unsqueeze(2) + self.eps)
        return self.proj(out.reshape(b, -1, h, w))


class Residual(nn.Module):
    def __init__(self, main: nn.Module, identity: bool) -> None:
        super().__init__()
        self.main, self.identity = main, identity

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x) if self.identity else self.main(x)


def attention_block(c, d, act, ratio, eps):
    return Chain(
        context_module=Residual(LiteMLA(c, d, eps), True),
        local_module=Residual(mb_conv(c, c, act, ratio, fewer=True), True),
    )


class Ops(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.op_list:
            x = layer(x)
        return x


class HiddenLinear(nn.Module):
    def __init__(self, cin, cout, act):
        super().__init__()
        self.linear, self.norm, self.act = nn.Linear(cin, cout, bias=False), nn.LayerNorm(cout), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.linear(x)))


class Linear(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.linear = nn.Linear(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class EfficientViT2D(nn.Module):
    """`attention_eps` 1e-15 is the original's; timm runs with 1e-5 and `head_norm_eps` 1e-5."""

    def __init__(self, name, num_classes=1000, attention_eps=1e-15, head_norm_eps=None):
        super().__init__()
        w, depth, d, head, eps = TABLE[name]
        b_series = name.startswith("b")
        act = F.hardswish if b_series else gelu_tanh
        stem = [ConvLayer(3, w[0], 3, 2, act=act)]
        for _ in range(depth[0]):
            stem.append(Residual(ds_conv(w[0], act) if b_series else res_block(w[0], act), True))
        stages = []
        for n in range(1, 5):
            cin, c = w[n - 1], w[n]
            if b_series and n <= 2:
                ops = [Residual(mb_conv(cin, c, act, 4, 2), False)]
                ops += [Residual(mb_conv(c, c, act, 4), True) for _ in range(depth[n] - 1)]
            elif b_series:
                ops = [Residual(mb_conv(cin, c, act, 4, 2, fewer=True), False)]
                ops += [attention_block(c, d, act, 4, attention_eps) for _ in range(depth[n])]
            elif n <= 2:
                ops = [Residual(fused_mb_conv(cin, c, act, 16, 2), False)]
                ops += [Residual(fused_mb_conv(c, c, act, 4), True) for _ in range(depth[n])]
            elif n == 3:
                ops = [Residual(mb_conv(cin, c, act, 16, 2, fewer=True), False)]
                ops += [Residual(mb_conv(c, c, act, 4, fewer=True), True) for _ in range(depth[n])]
            else:
                ops = [Residual(mb_conv(cin, c, act, 24, 2, fewer=True), False)]
                ops += [attention_block(c, d, act, 6, attention_eps) for _ in range(depth[n])]
            stages.append(Ops(ops))
        self.backbone = nn.Module()
        if b_series:
            self.backbone.input_stem = Ops(stem)
        else:
            stages.insert(0, Ops(stem))
        self.backbone.stages = nn.ModuleList(stages)
        self.head = Ops(
            [
                ConvLayer(w[4], head[0], act=act),
                Mean(),
                HiddenLinear(head[0], head[1], act),
                Linear(head[1], num_classes),
            ]
        )
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.eps = eps
        if head_norm_eps is not None:
            self.head.op_list[0].norm.eps = head_norm_eps

    def stages(self) -> list[nn.Module]:
        """The stem and stages 1 to 4."""
        stem = [self.backbone.input_stem] if hasattr(self.backbone, "input_stem") else []
        return [*stem, *self.backbone.stages]

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the outputs of the stem and stages 1 to 4."""
        outputs = []
        for stage in self.stages():
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1])


def randomize(model: EfficientViT2D, seed: int = 0) -> EfficientViT2D:
    """Gives every tensor values that matter, and running statistics that fit random images.

    No weight, bias, mean or variance is a constant, and the logits depend on the image.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.fill_(1.0)
            elif name.endswith(("running_mean", "num_batches_tracked")):
                tensor.zero_()
            elif name.endswith("norm.weight"):
                # Below 1, as in trained networks: larger branches make rounding errors grow.
                uniform(tensor, 0.2, 1.0)
            elif tensor.dim() == 1:
                uniform(tensor, -0.3, 0.3)
            elif tensor.dim() > 1:
                bound = (3.0 / tensor[0].numel()) ** 0.5
                uniform(tensor, -bound, bound)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(images(8, seed=seed + 1))
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def make_plain(name: str, **arguments: float) -> EfficientViT2D:
    """A 2-D network with random weights, not initialised twice."""
    with torch.device("meta"):
        model = EfficientViT2D(name, 10, **arguments)
    return randomize(model.to_empty(device="cpu"))


def images(count: int, size: int = 64, seed: int = 0) -> Tensor:
    """(count, 3, size, size) random images, smooth enough to look different from far away."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 16, size // 16, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bilinear") + 0.5 * fine


def timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a checkpoint with the original's names to timm's names."""
    large = "backbone.input_stem.op_list.0.conv.weight" not in tensors
    head = {
        "head.op_list.0.": "head.in_conv.",
        "head.op_list.2.linear.": "head.classifier.0.",
        "head.op_list.2.norm.": "head.classifier.1.",
        "head.op_list.3.linear.": "head.classifier.4.",
    }
    renamed = {}
    for name, tensor in tensors.items():
        stem = re.match(r"backbone\.(?:input_stem|stages\.0)\.op_list\.(\d+)\.(.*)", name)
        stage = re.match(r"backbone\.stages\.(\d+)\.op_list\.(\d+)\.(.*)", name)
        if stem and (large or "input_stem" in name):
            place = "in_conv" if stem[1] == "0" else f"res{int(stem[1]) - 1}"
            new = f"stem.{place}.{stem[2]}"
        elif stage:
            new = f"stages.{int(stage[1]) - large}.blocks.{stage[2]}.{stage[3]}"
        else:
            prefix = next(p for p in head if name.startswith(p))
            new = head[prefix] + name.removeprefix(prefix)
        renamed[new] = tensor
    return renamed


def still(image: Tensor, frames: int) -> Tensor:
    """(B, 3, H, W) to a clip (B, 3, T, H, W) of one repeated image."""
    return image.unsqueeze(2).expand(-1, -1, frames, -1, -1)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The L2 norm of the difference over that of what was expected."""
    return ((got - expected).norm() / expected.norm()).item()
