"""What the networks are made of: sizes, strides, names, first values."""

from __future__ import annotations

import pytest
import torch
from plain2d import TABLE, EfficientViT2D
from torch import nn

from evit_models import EfficientViT3D, create_model, list_models
from evit_models.blocks import EfficientViTBlock, LiteMLA

# Millions of parameters without the head, of the papers' table carried to three axes.
MILLIONS = {
    "b0": 0.838,
    "b1": 5.198,
    "b2": 16.18,
    "b3": 41.38,
    "l0": 31.85,
    "l1": 42.54,
    "l2": 55.52,
    "l3": 215.8,
}

NAMES_OF_B0 = [
    "stem.downsample.conv.weight",
    "stem.downsample.norm.running_var",
    "stem.blocks.0.depthwise.conv.weight",
    "stem.blocks.0.project.norm.bias",
    "stage1.downsample.expand.conv.weight",
    "stage1.downsample.depthwise.norm.weight",
    "stage2.blocks.0.project.norm.num_batches_tracked",
    "stage3.downsample.expand.conv.bias",
    "stage3.downsample.depthwise.conv.bias",
    "stage3.downsample.project.norm.running_mean",
    "stage3.blocks.1.attention.qkv.weight",
    "stage3.blocks.1.attention.aggregate.0.depthwise.weight",
    "stage3.blocks.1.attention.aggregate.0.pointwise.weight",
    "stage3.blocks.1.attention.project.conv.weight",
    "stage4.blocks.0.mbconv.expand.conv.bias",
    "stage4.blocks.0.mbconv.depthwise.conv.weight",
    "stage4.blocks.0.mbconv.project.norm.weight",
    "head.expand.conv.weight",
    "head.expand.norm.weight",
    "head.hidden.weight",
    "head.norm.bias",
    "head.classifier.weight",
    "head.classifier.bias",
]


def on_meta(name: str, num_classes: int = 400, **arguments) -> EfficientViT3D:
    with torch.device("meta"):
        return create_model(name, num_classes, **arguments)


def test_list():
    assert list_models() == [f"efficientvit3d_{variant}" for variant in TABLE]
    assert list_models("_l") == [f"efficientvit3d_l{n}" for n in range(4)]


@pytest.mark.parametrize("variant", MILLIONS)
def test_parameter_count(variant):
    model = on_meta(f"efficientvit3d_{variant}")
    backbone = sum(
        tensor.numel() for name, tensor in model.named_parameters() if not name.startswith("head.")
    )
    assert backbone / 1e6 == pytest.approx(MILLIONS[variant], rel=5e-4)


@pytest.mark.parametrize("variant", MILLIONS)
def test_parameter_count_without_time_is_the_image_networks(variant):
    model = on_meta(
        f"efficientvit3d_{variant}", 1000, temporal_kernel=1, aggregation_temporal_kernel=1
    )
    with torch.device("meta"):
        plain = EfficientViT2D(variant, 1000)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())


def test_names_of_tensors_stay():
    """Users' checkpoints hold these names."""
    state = on_meta("efficientvit3d_b0").state_dict()
    assert set(NAMES_OF_B0) <= state.keys()
    assert len(state) == 197


@pytest.mark.parametrize(
    ("strides", "times"),
    [
        ("tubelet", (8, 8, 8, 8, 8)),
        ("full", (16, 16, 16, 16, 16)),
        ("original", (8, 4, 2, 1, 1)),
        ((1, 1, 2, 1, 4), (16, 16, 8, 8, 2)),
        ([1, 1, 1, 1, 1], (16, 16, 16, 16, 16)),
    ],
)
@torch.no_grad()
def test_strides(strides, times):
    model = create_model("efficientvit3d_b0", temporal_strides=strides).eval()
    features = model.forward_features(torch.randn(1, 3, 16, 64, 32))
    assert tuple(feature.shape[2] for feature in features.values()) == times
    for row, (name, feature) in zip(model.feature_info, features.items(), strict=True):
        assert row["module"] == name
        assert feature.shape == (
            1,
            row["num_chs"],
            -(-16 // row["temporal_reduction"]),  # rounded up
            64 // row["reduction"],
            32 // row["reduction"],
        )
        assert feature.is_contiguous(memory_format=torch.channels_last_3d)


def test_padding_follows_the_strides():
    assert on_meta("efficientvit3d_b0").config["temporal_padding"] == "replicate"
    original = on_meta("efficientvit3d_b0", temporal_strides="original")
    assert original.config["temporal_padding"] == "zeros"
    chosen = on_meta("efficientvit3d_b0", temporal_strides="original", temporal_padding="causal")
    paddings = {
        module.temporal_padding
        for module in chosen.modules()
        if hasattr(module, "temporal_padding")
    }
    assert paddings == {"causal"}


@pytest.mark.parametrize("variant", ["b0", "l0"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 33, 47), (3, 17, 64), (7, 40, 25), (2, 224, 3)])
@torch.no_grad()
def test_any_size(variant, shape):
    model = create_model(f"efficientvit3d_{variant}", 7).eval()
    logits = model(torch.randn(2, 3, *shape))
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()


@torch.no_grad()
def test_empty_batch():
    model = create_model("efficientvit3d_b0", 7).eval()
    assert model(torch.randn(0, 3, 4, 32, 32)).shape == (0, 7)


def test_attention_stages():
    def attending(model):
        return {
            name.split(".")[0]
            for name, module in model.named_modules()
            if isinstance(module, EfficientViTBlock)
        }

    assert attending(on_meta("efficientvit3d_b1")) == {"stage3", "stage4"}
    assert attending(on_meta("efficientvit3d_l1")) == {"stage4"}


@pytest.mark.parametrize(("variant", "eps"), [("b0", 1e-5), ("l0", 1e-6), ("l1", 1e-7)])
def test_epsilons(variant, eps):
    model = on_meta(f"efficientvit3d_{variant}")
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm3d, nn.LayerNorm))]
    assert {norm.eps for norm in norms} == {eps}
    assert {m.eps for m in model.modules() if isinstance(m, LiteMLA)} == {1e-15}


@torch.no_grad()
def test_first_values():
    torch.manual_seed(0)
    model = create_model("efficientvit3d_b0")
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.dim() > 1:
            assert tensor.std() == pytest.approx(0.02, rel=0.35), name
            assert tensor.abs().max() < 0.2, name
        elif name.endswith("bias"):
            assert not tensor.any(), name
    assert not state["stage3.blocks.0.attention.project.norm.weight"].any()
    assert not state["stage3.blocks.0.mbconv.project.norm.weight"].any()
    assert not state["stem.blocks.0.project.norm.weight"].any()
    assert (state["stage1.downsample.project.norm.weight"] == 1).all()
    assert (state["head.expand.norm.weight"] == 1).all()
    # A block that is an identity at first: the stage gives what its strided layer gives.
    clip = torch.randn(2, 8, 3, 16, 16)
    stage = model.stage1.eval()
    torch.testing.assert_close(stage(clip), stage.downsample(clip))


def test_same_seed_same_model():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(create_model("efficientvit3d_b0").state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models), strict=True))


def test_config_rebuilds_the_model():
    model = on_meta(
        "efficientvit3d_l0",
        12,
        temporal_strides=(1, 2, 1, 1, 2),
        temporal_padding="causal",
        temporal_kernel=1,
        aggregation_temporal_kernel=3,
        drop_path=0.1,
        dropout=0.2,
    )
    with torch.device("meta"):
        again = EfficientViT3D(**model.config)
    assert again.config == model.config
    assert str(again) == str(model)


def test_classifier_can_be_replaced():
    model = create_model("efficientvit3d_b0", 10).double()
    assert model.get_classifier().out_features == 10
    model.reset_classifier(3)
    assert model.get_classifier().weight.dtype == torch.float64
    assert model.num_classes == model.config["num_classes"] == model.default_cfg["num_classes"] == 3
    clip = torch.randn(2, 3, 2, 32, 32, dtype=torch.float64)
    assert model(clip).shape == (2, 3)
    model.reset_classifier(0)
    assert model(clip).shape == (2, model.head_hidden_size)
    assert create_model("efficientvit3d_b0", 0)(clip.float()).shape == (2, 1280)


@torch.no_grad()
def test_head_and_features_make_the_forward():
    model = create_model("efficientvit3d_b0", 10).eval()
    clip = torch.randn(2, 3, 4, 64, 64)
    features = model.forward_features(clip)
    torch.testing.assert_close(model.forward_head(features), model(clip))
    torch.testing.assert_close(model.forward_head(features["stage4"]), model(clip))
    assert features["stage4"].shape[1] == model.num_features
    hidden = model.forward_head(features, pre_logits=True)
    assert hidden.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(hidden), model(clip))


def test_default_cfg_names_real_modules():
    model = on_meta("efficientvit3d_b0")
    assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
    assert model.default_cfg["mean"] == (0.485, 0.456, 0.406)
    assert model.default_cfg["std"] == (0.229, 0.224, 0.225)
