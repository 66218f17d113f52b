"""Names of tensors, there and back, for both projects and both series."""

from __future__ import annotations

import pytest
import torch
from plain2d import TABLE, EfficientViT2D, timm_names

from evit_models import create_model
from evit_models.checkpoints.keys import RULES, from_ours, to_ours

CASES = [(source, variant) for source in ("original", "timm") for variant in TABLE]


def names_of(source: str, variant: str) -> list[str]:
    with torch.device("meta"):
        state = EfficientViT2D(variant).state_dict()
    return list(state if source == "original" else timm_names(state))


@pytest.mark.parametrize(("source", "variant"), CASES)
def test_maps_are_inverse_and_complete(source, variant):
    with torch.device("meta"):
        ours = list(create_model(f"efficientvit3d_{variant}", 1000).state_dict())
    theirs = names_of(source, variant)
    series = variant[0].upper()
    assert {to_ours(name, source, series) for name in theirs} == set(ours)
    assert {from_ours(name, source, series) for name in ours} == set(theirs)
    for name in theirs:
        assert from_ours(to_ours(name, source, series), source, series) == name
    for name in ours:
        assert to_ours(from_ours(name, source, series), source, series) == name


@pytest.mark.parametrize(
    ("source", "series", "theirs", "ours"),
    [
        (
            "original",
            "B",
            "backbone.input_stem.op_list.1.main.depth_conv.conv.weight",
            "stem.blocks.0.depthwise.conv.weight",
        ),
        (
            "original",
            "B",
            "backbone.stages.2.op_list.3.context_module.main.aggreg.0.1.weight",
            "stage3.blocks.2.attention.aggregate.0.pointwise.weight",
        ),
        (
            "original",
            "L",
            "backbone.stages.1.op_list.0.main.spatial_conv.norm.running_var",
            "stage1.downsample.dense.norm.running_var",
        ),
        (
            "original",
            "L",
            "backbone.stages.4.op_list.8.local_module.main.inverted_conv.conv.bias",
            "stage4.blocks.7.mbconv.expand.conv.bias",
        ),
        ("original", "L", "head.op_list.2.linear.weight", "head.hidden.weight"),
        ("timm", "L", "stem.res0.main.conv2.norm.weight", "stem.blocks.0.conv2.norm.weight"),
        (
            "timm",
            "L",
            "stages.3.blocks.1.context_module.main.proj.norm.bias",
            "stage4.blocks.0.attention.project.norm.bias",
        ),
        ("timm", "B", "head.classifier.4.bias", "head.classifier.bias"),
    ],
)
def test_known_pairs(source, series, theirs, ours):
    assert to_ours(theirs, source, series) == ours
    assert from_ours(ours, source, series) == theirs


@pytest.mark.parametrize(("source", "series"), RULES)
@pytest.mark.parametrize(
    "name",
    [
        "",
        "head",
        "backbone.stages.0.op_list.0.main.mystery.weight",
        "backbone.stages.x.op_list.0.main.depth_conv.conv.weight",
        "backbone.stages.01.op_list.0.main.depth_conv.conv.weight",
        "stages.0.blocks.00.main.depth_conv.conv.weight",
        "stages.-1.blocks.0.main.depth_conv.conv.weight",
        "head.fc.weight",
        "cls_token",
    ],
)
def test_unknown_names_have_no_place(source, series, name):
    assert to_ours(name, source, series) is None
