"""Whose checkpoint is this, of which variant, and if of nobody we know, what does it look like."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from evit_models.efficientvit3d import VARIANTS

EXPECTED = (
    "expected an EfficientViT classifier of the original project "
    "(backbone.stages.0.op_list.0.main...), of timm (stages.0.blocks.0.main...) or of this package "
    "(stage1.downsample...)"
)

# The first tensor of every format that can be loaded: key -> (source, series or None).
_FIRST: dict[str, tuple[str, str | None]] = {
    "stem.downsample.conv.weight": ("evit_models", None),
    "backbone.input_stem.op_list.0.conv.weight": ("original", "B"),
    "backbone.stages.0.op_list.0.conv.weight": ("original", "L"),
    "stem.in_conv.conv.weight": ("timm", None),
}

# Other networks that people have at hand: a pattern of one telling key, and the network's name.
_LOOKALIKES: tuple[tuple[str, str], ...] = (
    (r"image_encoder\.backbone\.", "the segmenter EfficientViT-SAM"),
    (r"patch_embed\.0\.c\.weight", "EfficientViT-M of Microsoft, another network of the same name"),
    (r"visual\.|transformer\.resblocks\.", "CLIP"),
    (r"layer1\.0\.conv1\.weight", "a ResNet"),
    (r"(?:module\.)?blocks\.0\.attn\.qkv\.weight", "a Vision Transformer"),
    (r"layers\.0\.blocks\.0\.attn\.", "a Swin Transformer"),
    (r"conv_stem\.weight", "an EfficientNet"),
    (r"features\.0\.0\.weight", "a MobileNet or EfficientNet of torchvision"),
    (r"stages\.0\.blocks\.0\.(?:gamma|conv_dw\.weight)", "a ConvNeXt"),
    (r"blocks\.0\.conv\.conv_t\.weight", "an X3D"),
    (r"param_groups$|state$", "the state of an optimizer"),
)


def recognise(keys: Collection[str]) -> tuple[str, str] | None:
    """Returns (source, series) of a checkpoint by its keys, or None.

    The source is "evit_models", "original" or "timm"; the series is "B" or "L".
    """
    for first, (source, series) in _FIRST.items():
        if first in keys:
            return source, series or ("L" if _has_dense_stem(keys) else "B")
    return None


def describe(keys: Collection[str]) -> str:
    """Returns in words what a checkpoint of nobody we know looks like."""
    some = ", ".join(sorted(keys)[:4])
    for pattern, name in _LOOKALIKES:
        if any(re.match(pattern, key) for key in keys):
            return f"looks like {name} ({len(keys)} tensors: {some}, ...)"
    return f"looks like none of the networks known here ({len(keys)} tensors: {some}, ...)"


def identify_variant(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str | None, str]:
    """Returns the variant that tensors belong to, by our names and their shapes, and what was seen.

    The name is None where widths and depths are in no row of the table.
    """
    widths = [_width(shapes, "stem.downsample.conv.weight")]
    widths += [_width(shapes, f"stage{n}.downsample.project.conv.weight") for n in range(1, 5)]
    blocks = [_count(shapes, stage) for stage in ("stem", "stage1", "stage2", "stage3", "stage4")]
    for name, variant in VARIANTS.items():
        if list(variant.widths) == widths and list(variant.blocks) == blocks:
            return name, name
    return None, f"widths {widths} and {blocks} blocks in stem and stages"


def _has_dense_stem(keys: Collection[str]) -> bool:
    return "stem.res0.main.conv1.conv.weight" in keys or "stem.blocks.0.conv1.conv.weight" in keys


def _width(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    shape = shapes.get(name, ())
    return shape[0] if shape else 0


def _count(shapes: Mapping[str, tuple[int, ...]], stage: str) -> int:
    pattern = re.compile(rf"{stage}\.blocks\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, shapes) if match})
