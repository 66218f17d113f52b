"""Loading and saving: what is taken, what is reported, what is refused and in which words."""

from __future__ import annotations

import json
import logging
import os
import stat

import pytest
import torch
from plain2d import make_plain, relative_error, still, timm_names
from safetensors.torch import load_file, save_file

from evit_models import (
    CheckpointError,
    create_model,
    load_model,
    load_pretrained,
    save_checkpoint,
)

B0 = "efficientvit3d_b0"


@pytest.fixture
def b0(reference):
    return reference("b0")


def test_report_names_every_tensor(b0, caplog):
    with caplog.at_level(logging.INFO, logger="evit_models"):
        model = create_model(B0, 10, pretrained=b0.path)
    report = model.load_report
    assert (report.source, report.variant, report.path) == ("original", B0, str(b0.path))
    assert not report.skipped
    assert not report.missing
    assert report.complete
    assert {*report.loaded, *report.inflated} == model.state_dict().keys()
    assert not {*report.loaded} & {*report.inflated}
    kernels = {name for name, t in model.state_dict().items() if t.dim() == 5 and t.shape[2] > 1}
    assert {*report.inflated} == kernels
    assert "181 tensors loaded, 16 inflated, 0 skipped, 0 missing" in caplog.text
    assert int(model.stem.downsample.norm.num_batches_tracked) > 0


def test_classifier_of_another_count_is_left_out_by_name(b0, caplog):
    model = create_model(B0, 7, pretrained=b0.path)
    classifier = {"head.classifier.weight", "head.classifier.bias"}
    assert model.load_report.skipped == dict.fromkeys(
        classifier, "10 classes in the file, 7 in the model"
    )
    assert {*model.load_report.missing} == classifier
    assert not model.load_report.complete
    assert "head.classifier.weight: 10 classes in the file, 7 in the model" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING
    assert model.head.classifier.weight.detach().std() == pytest.approx(0.02, rel=0.1)
    assert not model.head.classifier.bias.any()


def test_classifier_that_the_model_does_not_have(b0):
    report = create_model(B0, 0, pretrained=b0.path).load_report
    assert {*report.skipped} == {"head.classifier.weight", "head.classifier.bias"}
    assert report.complete


def test_backbone_alone(b0, tmp_path):
    """The original project's backbone, with and without the prefix; the head stays random."""
    backbone = {name: t for name, t in b0.tensors.items() if name.startswith("backbone.")}
    torch.save(backbone, tmp_path / "prefixed.pt")
    torch.save(
        {name.removeprefix("backbone."): t for name, t in backbone.items()}, tmp_path / "bare.pt"
    )
    for name in ("prefixed.pt", "bare.pt"):
        torch.manual_seed(0)
        model = create_model(B0, 10, pretrained=tmp_path / name)
        assert all(name.startswith("head.") for name in model.load_report.missing)
        assert len(model.load_report.missing) == 10
        assert model.head.hidden.weight.detach().std() == pytest.approx(0.02, rel=0.05)
        assert (model.head.expand.norm.weight == 1).all()
        assert (model.head.expand.norm.running_var == 1).all()
        assert int(model.head.expand.norm.num_batches_tracked) == 0
        assert not model.head.expand.norm.running_mean.any()


def test_foreign_tensors_are_skipped_by_name(b0, tmp_path):
    tensors = {**b0.tensors, "head.extra.weight": torch.ones(3)}
    torch.save(tensors, tmp_path / "extra.pt")
    report = create_model(B0, 10, pretrained=tmp_path / "extra.pt").load_report
    assert report.skipped == {"head.extra.weight": f"{B0} has no such tensor"}
    assert report.complete


@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state_dict", "ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_wrapped_checkpoints(b0, tmp_path, nest, prefix):
    tensors = {prefix + name: tensor for name, tensor in b0.tensors.items()}
    torch.save({"epoch": 1, nest: tensors, "best": 0.5}, tmp_path / "wrapped.pt")
    assert create_model(B0, 10, pretrained=tmp_path / "wrapped.pt").load_report.complete


@torch.no_grad()
def test_safetensors_of_both_projects(b0, tmp_path):
    save_file(b0.tensors, tmp_path / "original.safetensors")
    save_file(timm_names(b0.tensors), tmp_path / "timm.safetensors")
    # The timm file's network would run with other epsilons than the reference does.
    for source, bound in (("original", 1e-5), ("timm", 1e-4)):
        model = create_model(B0, 10, pretrained=tmp_path / f"{source}.safetensors").eval()
        assert model.load_report.source == source
        assert relative_error(model(still(b0.images, 2)), b0.logits) < bound


def test_half_precision_file_into_float_model(b0, tmp_path):
    halves = {n: t.half() if t.is_floating_point() else t for n, t in b0.tensors.items()}
    torch.save(halves, tmp_path / "half.pt")
    model = create_model(B0, 10, pretrained=tmp_path / "half.pt")
    assert model.head.hidden.weight.dtype == torch.float32
    expected = b0.tensors["head.op_list.2.linear.weight"]
    torch.testing.assert_close(model.head.hidden.weight.data, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["b0", "l0"])
def test_save_and_load_again(tmp_path, variant):
    torch.manual_seed(0)
    model = create_model(
        f"efficientvit3d_{variant}", 5, temporal_strides=(1, 2, 1, 1, 1), temporal_kernel=1
    )
    randomize_statistics(model)
    model.set_epsilons(1e-5, 1e-4)
    path = save_checkpoint(model, tmp_path / "run" / "last.safetensors")
    clip = torch.randn(2, 3, 4, 32, 32)
    expected = model.eval()(clip)
    again = load_model(path).eval()
    assert again.config == model.config
    assert torch.equal(again(clip), expected)
    assert again.load_report.source == "evit_models"
    assert again.load_report.complete
    by_name = create_model(
        model.name, 5, pretrained=path, temporal_strides=(1, 2, 1, 1, 1), temporal_kernel=1
    ).eval()
    assert by_name.config == model.config
    assert torch.equal(by_name(clip), expected)


def test_epsilon_of_zero_survives(tmp_path):
    model = create_model(B0, 3)
    model.set_epsilons(0.0, 1e-5)
    assert load_model(save_checkpoint(model, tmp_path)).config["attention_eps"] == 0.0


def test_saved_files(tmp_path):
    model = create_model(B0, 5)
    assert save_checkpoint(model, tmp_path) == tmp_path / "model.safetensors"
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == B0
    assert config["num_classes"] == 5
    assert config["default_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert load_model(tmp_path).config == model.config
    assert create_model(B0, 5, pretrained=tmp_path).load_report.complete
    mode = stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode)
    assert mode & stat.S_IRUSR
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    # The same weights are the same bytes.
    assert len({save_checkpoint(model, tmp_path).read_bytes() for _ in range(8)}) == 1


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    model = create_model(B0, 5)
    path = save_checkpoint(model, tmp_path / "last.safetensors")
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(create_model(B0, 5), path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["config.json", "last.safetensors"]


def test_save_refuses_other_suffixes(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors or be a folder"):
        save_checkpoint(create_model(B0, 5), tmp_path / "last.pt")
    # A folder that is there is one, whatever its name.
    folder = tmp_path / "lr0.01"
    folder.mkdir()
    assert save_checkpoint(create_model(B0, 5), folder) == folder / "model.safetensors"


def test_own_weights_of_images_inflate(tmp_path):
    """A network trained frame by frame starts one with time."""
    frames = create_model(B0, 5, temporal_kernel=1, aggregation_temporal_kernel=1)
    path = save_checkpoint(frames, tmp_path / "frames.safetensors")
    report = create_model(B0, 5, pretrained=path).load_report
    assert len(report.inflated) == 16
    clips = save_checkpoint(create_model(B0, 5), tmp_path / "clips.safetensors")
    with pytest.raises(CheckpointError, match=r"create_model\(\.\.\., temporal_kernel=3\)"):
        create_model(B0, 5, pretrained=clips, temporal_kernel=1)


def test_clip_weights_with_the_originals_names(b0, tmp_path):
    """The published 3-D adaptation keeps the original's names, with one more axis."""
    from evit_models.checkpoints.keys import from_ours

    model = create_model(B0, 10, pretrained=b0.path, inflation="mean")
    tensors = {from_ours(name, "original", "B"): t for name, t in model.state_dict().items()}
    torch.save(tensors, tmp_path / "clips.pt")
    again = create_model(B0, 10, pretrained=tmp_path / "clips.pt", temporal_strides="original")
    assert again.load_report.inflated == ()
    assert again.load_report.complete
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("inflation", ["center", "mean"])
def test_inflated_kernels_sum_to_the_image_kernel(b0, inflation):
    model = create_model(B0, 10, pretrained=b0.path, inflation=inflation)
    flat = b0.tensors["backbone.input_stem.op_list.0.conv.weight"]
    weight = model.stem.downsample.conv.weight.data
    torch.testing.assert_close(weight.sum(2), flat)
    if inflation == "center":
        assert torch.equal(weight[:, :, 1], flat)
        assert not weight[:, :, 0].any()
        assert not weight[:, :, 2].any()
    else:
        assert torch.equal(weight[:, :, 0], weight[:, :, 2])


def test_epsilons_follow_the_file(b0, tmp_path):
    torch.save(timm_names(b0.tensors), tmp_path / "timm.pt")
    model = create_model(B0, 10)
    load_pretrained(model, tmp_path / "timm.pt")
    assert model.stage3.blocks[0].attention.eps == 1e-5
    load_pretrained(model, b0.path)
    assert model.stage3.blocks[0].attention.eps == 1e-15


def test_wrong_variant_is_named(b0, reference):
    with pytest.raises(CheckpointError, match=rf"holds the weights of {B0}, expected .*_b1"):
        create_model("efficientvit3d_b1", 10, pretrained=b0.path)
    with pytest.raises(CheckpointError, match=r"weights of efficientvit3d_l0, expected .*_l1"):
        create_model("efficientvit3d_l1", 10, pretrained=reference("l0").path)


def test_unknown_variant_is_described(b0, tmp_path):
    tensors = {name: t for name, t in b0.tensors.items() if ".stages.3.op_list.2." not in name}
    torch.save(tensors, tmp_path / "short.pt")
    words = (
        r"widths \[8, 16, 32, 64, 128\] and \[1, 1, 1, 2, 1\] blocks.*expected efficientvit3d_b0"
    )
    with pytest.raises(CheckpointError, match=words):
        create_model(B0, 10, pretrained=tmp_path / "short.pt")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["conv1.weight", "layer1.0.conv1.weight"], "looks like a ResNet"),
        (["cls_token", "blocks.0.attn.qkv.weight"], "looks like a Vision Transformer"),
        (["visual.conv1.weight"], "looks like CLIP"),
        (["patch_embed.0.c.weight"], "EfficientViT-M of Microsoft"),
        (["image_encoder.backbone.stages.0.op_list.0.conv.weight"], "EfficientViT-SAM"),
        (["something.weight"], "looks like none of the networks known here"),
    ],
)
def test_wrong_network_is_named(tmp_path, names, words):
    torch.save(dict.fromkeys(names, torch.ones(2)), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        create_model(B0, pretrained=tmp_path / "other.pth")
    assert "expected an EfficientViT classifier of the original project" in str(caught.value)
    assert "other.pth" in str(caught.value)


def test_load_model_needs_a_configuration(b0, tmp_path):
    with pytest.raises(CheckpointError, match="holds no configuration"):
        load_model(b0.path)
    path = tmp_path / "odd.safetensors"
    tensors = create_model(B0, 3).state_dict()
    for config in ('{"name": "resnet"}', '{"name": "efficientvit3d_b0", "surprise": 1}'):
        save_file(tensors, path, {"evit_models": config})
        with pytest.raises(CheckpointError, match="describes no model"):
            load_model(path)
    config = json.dumps({**create_model(B0, 3).config, "attention_eps": "small"})
    save_file(tensors, path, {"evit_models": config})
    with pytest.raises(CheckpointError, match="attention_eps must be at least 0 and below 1"):
        load_model(path)
    for config in ("[1]", "{"):
        save_file(tensors, path, {"evit_models": config})
        with pytest.raises(CheckpointError, match="configuration is not"):
            load_model(path)


def test_two_dimensional_reference_is_independent():
    """The reference network knows nothing of ours: it gives other logits for other images."""
    plain = make_plain("b0")
    with torch.no_grad():
        assert plain(torch.randn(2, 3, 64, 64)).std(0).mean() > 0.05


def randomize_statistics(model: torch.nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "norm.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0.0, 0.1)
