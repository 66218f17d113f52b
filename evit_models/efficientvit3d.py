"""EfficientViT-3D: the EfficientViT image classifiers (arXiv 2205.14756) with a time axis.

One table of variants, and the network that it describes. B variants attend in stages 3 and 4, L
variants in stage 4 only. Every spatial stride is 2, five times; what happens to time is the user's
choice of `temporal_strides`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from evit_models.arguments import (
    check_classes,
    check_clip,
    check_odd,
    check_probability,
    check_temporal_padding,
    expand_temporal_strides,
)
from evit_models.blocks import (
    ATTENTION_EPS,
    Block,
    ClassifierHead,
    DSConv,
    EfficientViTBlock,
    FusedMBConv,
    LiteMLA,
    MBConv,
    ResBlock,
    classifier_layer,
)
from evit_models.layers import DenseConvNormAct, LayerStyle, init_tensor

if TYPE_CHECKING:
    from evit_models.checkpoints.report import LoadReport

_Make = Callable[..., nn.Module]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Variant(NamedTuple):
    """One row of the family's table; tuples run over the stem and stages 1 to 4."""

    series: str
    widths: tuple[int, int, int, int, int]
    depths: tuple[int, int, int, int, int]
    head_dim: int
    head_widths: tuple[int, int]
    norm_eps: float

    @property
    def activation(self) -> str:
        """The activation after every layer that has one."""
        return "hardswish" if self.series == "B" else "gelu_tanh"

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks after the strided layer of the stem and of every stage."""
        if self.series == "L":
            return self.depths
        stem, first, second, third, fourth = self.depths
        return stem, first - 1, second - 1, third, fourth


# fmt: off
_TABLE = {
    #              widths                    depths         d   head widths   norm eps
    "b0": Variant("B", (8, 16, 32, 64, 128), (1, 2, 2, 2, 2), 16, (1024, 1280), 1e-5),
    "b1": Variant("B", (16, 32, 64, 128, 256), (1, 2, 3, 3, 4), 16, (1536, 1600), 1e-5),
    "b2": Variant("B", (24, 48, 96, 192, 384), (1, 3, 4, 4, 6), 32, (2304, 2560), 1e-5),
    "b3": Variant("B", (32, 64, 128, 256, 512), (1, 4, 6, 6, 9), 32, (2304, 2560), 1e-5),
    "l0": Variant("L", (32, 64, 128, 256, 512), (1, 1, 1, 4, 4), 32, (3072, 3200), 1e-6),
    "l1": Variant("L", (32, 64, 128, 256, 512), (1, 1, 1, 6, 6), 32, (3072, 3200), 1e-7),
    "l2": Variant("L", (32, 64, 128, 256, 512), (1, 2, 2, 8, 8), 32, (3072, 3200), 1e-7),
    "l3": Variant("L", (64, 128, 256, 512, 1024), (1, 2, 2, 8, 8), 32, (6144, 6400), 1e-7),
}
# fmt: on
VARIANTS: dict[str, Variant] = {f"efficientvit3d_{row}": _TABLE[row] for row in _TABLE}

TEMPORAL_STRIDES: dict[str, tuple[int, int, int, int, int]] = {
    "tubelet": (2, 1, 1, 1, 1),
    "full": (1, 1, 1, 1, 1),
    "original": (2, 2, 2, 2, 2),
}


class EfficientViT3D(nn.Module):
    """EfficientViT-3D for clips of any length and resolution.

    Args:
        name: one of `VARIANTS`.
        num_classes: outputs of the classifier; 0 leaves the classifier out.
        temporal_strides: "tubelet", "full", "original", or five ints for the stem and the stages.
        temporal_padding: what stands before and after the clip: "replicate" (first and last frame),
            "zeros", or "causal" (first frame, nothing after). None means "zeros" for the original
            strides and "replicate" for all others.
        temporal_kernel: temporal size of the convolutions, odd; 1 treats every frame by itself,
            apart from the attention.
        aggregation_temporal_kernel: temporal size of the attention's aggregation: 1, 3 or 5.
        scales: spatial sizes of the attention's aggregating convolutions, odd.
        drop_path: probability of dropping the last block's branches; it grows linearly from 0.
        dropout: probability of dropping a feature before the classifier.
        attention_eps: added to the attention's denominator.
        head_norm_eps: epsilon of the head's batch norm; None means the variant's.
        backend: backend of every operator, None for the automatic choice.

    Attributes:
        config: the arguments above, but for the backend, as plain values;
            `EfficientViT3D(**config)` builds the same network.
        default_cfg: what the network expects of its input, in timm's words.
        data_cfg: what training knew of its data, over the defaults of `default_cfg`: "input_size",
            "stride" (frames from one to the next, None where clips spread over the video), "mean",
            "std", "class_names", and "heads" (classes by head, where the outputs are of several).
        num_features: channels of the last stage. head_hidden_size: inputs of the classifier.
        feature_info: channels, spatial and temporal reduction of what `forward_features` returns.
        load_report: what the last checkpoint gave, None while all weights are random.
    """

    load_report: LoadReport | None = None

    def __init__(
        self,
        name: str,
        num_classes: int = 400,
        *,
        temporal_strides: str | Sequence[int] = "tubelet",
        temporal_padding: str | None = None,
        temporal_kernel: int = 3,
        aggregation_temporal_kernel: int = 5,
        scales: Sequence[int] = (5,),
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attention_eps: float = ATTENTION_EPS,
        head_norm_eps: float | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        variant = VARIANTS[name]
        strides = expand_temporal_strides(temporal_strides, TEMPORAL_STRIDES)
        if temporal_padding is None:
            temporal_padding = "zeros" if strides == TEMPORAL_STRIDES["original"] else "replicate"
        check_temporal_padding(temporal_padding)
        check_classes(num_classes)
        check_odd("temporal_kernel", temporal_kernel)
        check_odd("aggregation_temporal_kernel", aggregation_temporal_kernel, largest=5)
        for scale in scales:
            check_odd("scales", scale)
        check_probability("drop_path", drop_path)
        check_probability("dropout", dropout)
        style = LayerStyle(
            activation=variant.activation,
            norm_eps=variant.norm_eps,
            temporal_kernel=temporal_kernel,
            aggregation_temporal_kernel=aggregation_temporal_kernel,
            temporal_padding=temporal_padding,
            head_dim=variant.head_dim,
            scales=tuple(scales),
            backend=backend,
        )
        self.name = name
        self.num_classes = num_classes
        self.num_features = variant.widths[-1]
        self.head_hidden_size = variant.head_widths[-1]
        self.temporal_strides = strides
        self.data_cfg: dict[str, Any] = {}
        self.config: dict[str, Any] = {
            "name": name,
            "num_classes": num_classes,
            "temporal_strides": list(strides),
            "temporal_padding": temporal_padding,
            "temporal_kernel": temporal_kernel,
            "aggregation_temporal_kernel": aggregation_temporal_kernel,
            "scales": list(scales),
            "drop_path": drop_path,
            "dropout": dropout,
            "attention_eps": attention_eps,
            "head_norm_eps": variant.norm_eps if head_norm_eps is None else head_norm_eps,
        }

        rates = iter(_linear_rates(drop_path, sum(variant.blocks)))
        self.stem = _stem(variant, strides[0], style, rates)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            _stage(variant, index, strides[index], style, rates) for index in range(1, 5)
        )
        self.head = ClassifierHead(
            self.num_features, variant.head_widths, num_classes, style, dropout=dropout
        )
        self.set_epsilons(self.config["attention_eps"], self.config["head_norm_eps"])
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits of clips.

        Args:
            x: (B, 3, T, H, W), normalised as `default_cfg` says, in the dtype and on the device of
                the weights, in either memory format; any T, H and W of at least 1.

        Returns:
            (B, num_classes); with `num_classes=0` (B, head_hidden_size).
        """
        x = self._prepare(x)
        for stage in self._stages().values():
            x = stage(x)
        logits: Tensor = self.head(x)
        return logits

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the outputs of "stem", "stage1", "stage2", "stage3" and "stage4", in this order.

        Args:
            x: as in `forward`.

        Returns:
            Each (B, C, T', H', W') in `torch.channels_last_3d`; `feature_info` tells C and by what
            factors T', H' and W' are smaller than the clip's, rounded up.
        """
        x = self._prepare(x)
        features = {}
        for name, stage in self._stages().items():
            features[name] = x = stage(x)
        return features

    def forward_head(self, x: Tensor | dict[str, Tensor], pre_logits: bool = False) -> Tensor:
        """Returns the logits of what `forward_features` gave, or of its "stage4" alone.

        With `pre_logits` it returns the classifier's input, (B, head_hidden_size).
        """
        out: Tensor = self.head(x["stage4"] if isinstance(x, dict) else x, pre_logits)
        return out

    def get_classifier(self) -> nn.Module:
        """Returns the last linear layer."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last linear layer by a fresh one; 0 leaves it out."""
        check_classes(num_classes)
        like = self.head.hidden.weight
        layer = classifier_layer(self.head_hidden_size, num_classes).to(like.device, like.dtype)
        for name, tensor in layer.state_dict().items():
            init_tensor(name, tensor)
        self.head.classifier = layer.train(self.training)
        self.num_classes = self.config["num_classes"] = num_classes
        for name in ("class_names", "heads"):
            self.data_cfg.pop(name, None)

    def set_epsilons(self, attention: float, head_norm: float) -> None:
        """Sets the epsilon of every attention and of the head's batch norm: projects differ."""
        for module in self.modules():
            if isinstance(module, LiteMLA):
                module.eps = attention
        if isinstance(self.head.expand.norm, nn.modules.batchnorm._BatchNorm):
            self.head.expand.norm.eps = head_norm
        self.config.update(attention_eps=attention, head_norm_eps=head_norm)

    def init_weights(self, names: Collection[str] | None = None) -> None:
        """Draws fresh weights: truncated normal of deviation 0.02, biases 0, statistics 0 and 1.

        Every residual block starts as an identity, by a zero weight in its last norm.

        Args:
            names: names of the tensors of `state_dict()` to draw; None means all.
        """
        identities = {
            f"{name}.{module.last_layer}.norm.weight"
            for name, module in self.named_modules()
            if isinstance(module, Block) and module.residual
        }
        for name, tensor in self.state_dict().items():
            if names is None or name in names:
                init_tensor(name, tensor, identity=name in identities)

    @property
    def default_cfg(self) -> dict[str, Any]:
        """What the network expects of its input, in timm's words; input_size is (C, T, H, W)."""
        return {
            "input_size": (3, 16, 224, 224),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.95,
            "num_classes": self.num_classes,
            "first_conv": "stem.downsample.conv",
            "classifier": "head.classifier",
            **self.data_cfg,
        }

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Per stage: module name, channels, and the factors by which space and time have shrunk."""
        rows, time = [], 1
        widths = VARIANTS[self.name].widths
        for index, (name, stride) in enumerate(
            zip(self._stages(), self.temporal_strides, strict=True)
        ):
            time *= stride
            rows.append(
                {
                    "module": name,
                    "num_chs": widths[index],
                    "reduction": 2 ** (index + 1),
                    "temporal_reduction": time,
                }
            )
        return rows

    def _stages(self) -> dict[str, nn.Module]:
        return {
            "stem": self.stem,
            "stage1": self.stage1,
            "stage2": self.stage2,
            "stage3": self.stage3,
            "stage4": self.stage4,
        }

    def _prepare(self, x: Tensor) -> Tensor:
        check_clip(x, self.head.hidden.weight)
        return x.contiguous(memory_format=torch.channels_last_3d)


class Stage(nn.Module):
    """A strided layer, then blocks that keep the shape."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


def _stem(variant: Variant, time: int, style: LayerStyle, rates: Iterator[float]) -> Stage:
    width = variant.widths[0]
    block = partial(DSConv if variant.series == "B" else ResBlock, width, style, residual=True)
    return Stage(
        DenseConvNormAct(3, width, style, stride=(time, 2, 2)),
        [block(drop_path=next(rates)) for _ in range(variant.blocks[0])],
    )


def _stage(
    variant: Variant, index: int, time: int, style: LayerStyle, rates: Iterator[float]
) -> Stage:
    kinds = _kinds_b if variant.series == "B" else _kinds_l
    width = variant.widths[index]
    downsample, block = kinds(index, variant.widths[index - 1], width, style)
    return Stage(
        downsample(stride=(time, 2, 2)),
        [block(drop_path=next(rates)) for _ in range(variant.blocks[index])],
    )


def _kinds_b(index: int, previous: int, width: int, style: LayerStyle) -> tuple[_Make, _Make]:
    if index <= 2:
        return (
            partial(MBConv, previous, width, style, expand_ratio=4),
            partial(MBConv, width, width, style, expand_ratio=4, residual=True),
        )
    return (
        partial(MBConv, previous, width, style, expand_ratio=4, fewer_norm=True),
        partial(EfficientViTBlock, width, style, expand_ratio=4),
    )


def _kinds_l(index: int, previous: int, width: int, style: LayerStyle) -> tuple[_Make, _Make]:
    if index <= 2:
        return (
            partial(FusedMBConv, previous, width, style, expand_ratio=16),
            partial(FusedMBConv, width, width, style, expand_ratio=4, residual=True),
        )
    if index == 3:
        return (
            partial(MBConv, previous, width, style, expand_ratio=16, fewer_norm=True),
            partial(MBConv, width, width, style, expand_ratio=4, fewer_norm=True, residual=True),
        )
    return (
        partial(MBConv, previous, width, style, expand_ratio=24, fewer_norm=True),
        partial(EfficientViTBlock, width, style, expand_ratio=6),
    )


def _linear_rates(last: float, count: int) -> list[float]:
    return [last * index / max(count - 1, 1) for index in range(count)]
