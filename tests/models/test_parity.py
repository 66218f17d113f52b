"""Inflated networks answer to a still clip what the 2-D network answers to its image."""

from __future__ import annotations

import pytest
import torch
from plain2d import (
    TABLE,
    EfficientViT2D,
    images,
    make_plain,
    relative_error,
    still,
    timm_names,
)

from evit_models import create_model

BOUND = 1e-5
CLIPS = (1, 5, 16)


@torch.no_grad()
def assert_parity(reference, model, clips=CLIPS):
    model.eval()
    for frames in clips:
        error = relative_error(model(still(reference.images, frames)), reference.logits)
        assert error < BOUND, f"{frames} frames: {error}"


@pytest.mark.parametrize("variant", TABLE)
def test_every_variant(reference, variant):
    name = f"efficientvit3d_{variant}"
    model = create_model(name, 10, pretrained=reference(variant).path)
    assert not model.load_report.missing
    assert not model.load_report.skipped
    assert_parity(reference(variant), model)
    # The same weights, not copied, in a network that keeps every frame.
    with torch.device("meta"):
        full = create_model(name, 10, temporal_strides="full")
    full.load_state_dict(model.state_dict(), assign=True)
    assert_parity(reference(variant), full)


# Not l3: nearly a gigabyte of the very blocks of l2.
@pytest.mark.parametrize("variant", [variant for variant in TABLE if variant != "l3"])
def test_mean_inflation(reference, variant):
    model = create_model(
        f"efficientvit3d_{variant}", 10, pretrained=reference(variant).path, inflation="mean"
    )
    assert_parity(reference(variant), model)


@pytest.mark.parametrize("variant", ["b0", "l0"])
@pytest.mark.parametrize(
    ("strides", "padding", "inflation"),
    [
        ("tubelet", "replicate", "mean"),
        ("full", "replicate", "center"),
        ("tubelet", "causal", "center"),
        ("full", "causal", "mean"),
        ("original", "replicate", "mean"),
        ("tubelet", "zeros", "center"),
        ("original", None, "center"),
        ((1, 2, 1, 2, 1), None, "mean"),
    ],
)
def test_every_way_of_time(reference, variant, strides, padding, inflation):
    model = create_model(
        f"efficientvit3d_{variant}",
        10,
        pretrained=reference(variant).path,
        temporal_strides=strides,
        temporal_padding=padding,
        inflation=inflation,
    )
    assert_parity(reference(variant), model)


@pytest.mark.parametrize("kernels", [(1, 1), (1, 5), (3, 1), (3, 3), (5, 3)])
def test_every_temporal_kernel(reference, kernels):
    model = create_model(
        "efficientvit3d_b0",
        10,
        pretrained=reference("b0").path,
        temporal_kernel=kernels[0],
        aggregation_temporal_kernel=kernels[1],
        inflation="mean",
    )
    assert_parity(reference("b0"), model)


@torch.no_grad()
def test_zeros_with_mean_differ(reference):
    """The fault that replicate padding is there for: with zeros a still clip is not an image."""
    model = create_model(
        "efficientvit3d_b0",
        10,
        pretrained=reference("b0").path,
        temporal_padding="zeros",
        inflation="mean",
    ).eval()
    error = relative_error(model(still(reference("b0").images, 5)), reference("b0").logits)
    assert error > 0.01


@torch.no_grad()
@pytest.mark.parametrize("variant", ["b1", "l0"])
def test_features_of_every_stage(reference, variant):
    model = create_model(f"efficientvit3d_{variant}", 10, pretrained=reference(variant).path).eval()
    features = model.forward_features(still(reference(variant).images, 4))
    assert list(features) == ["stem", "stage1", "stage2", "stage3", "stage4"]
    for ours, plain in zip(features.values(), reference(variant).features, strict=True):
        assert relative_error(ours, still(plain, ours.shape[2])) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("variant", ["b0", "l0"])
def test_timm_checkpoint(tmp_path, variant):
    plain = make_plain(variant, attention_eps=1e-5, head_norm_eps=1e-5)
    torch.save(timm_names(plain.state_dict()), tmp_path / "timm.pth")
    model = create_model(f"efficientvit3d_{variant}", 10, pretrained=tmp_path / "timm.pth").eval()
    assert model.load_report.source == "timm"
    assert not model.load_report.missing
    assert not model.load_report.skipped
    assert model.config["attention_eps"] == 1e-5
    assert model.head.expand.norm.eps == 1e-5
    pictures = images(2, seed=8)
    assert relative_error(model(still(pictures, 3)), plain(pictures)) < BOUND


@torch.no_grad()
def test_one_frame_kernels_are_the_image_network_per_frame(reference):
    """With temporal kernels of 1 nothing but attention and the head's mean mixes frames."""
    plain = EfficientViT2D("b0", num_classes=10)
    plain.load_state_dict(reference("b0").tensors)
    plain.eval()
    model = create_model(
        "efficientvit3d_b0",
        10,
        pretrained=reference("b0").path,
        temporal_strides="full",
        temporal_kernel=1,
        aggregation_temporal_kernel=1,
    ).eval()
    clip = torch.stack([images(2, seed=seed) for seed in range(4)], dim=2)
    features = model.forward_features(clip)
    for index, name in enumerate(["stem", "stage1", "stage2"]):
        frames = [plain.features(clip[:, :, frame])[index] for frame in range(4)]
        assert relative_error(features[name], torch.stack(frames, dim=2)) < BOUND


@torch.no_grad()
def test_center_with_causal_padding_sees_the_present_frame(reference):
    plain = EfficientViT2D("b0", num_classes=10)
    plain.load_state_dict(reference("b0").tensors)
    plain.eval()
    model = create_model(
        "efficientvit3d_b0",
        10,
        pretrained=reference("b0").path,
        temporal_strides="full",
        temporal_padding="causal",
    ).eval()
    clip = torch.stack([images(2, seed=seed) for seed in range(4)], dim=2)
    expected = torch.stack([plain.features(clip[:, :, t])[2] for t in range(4)], dim=2)
    assert relative_error(model.forward_features(clip)["stage2"], expected) < BOUND
