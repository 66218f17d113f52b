"""Files that are damaged, disguised or meant to do harm: refused in words, the model untouched."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save

from evit_models import CheckpointError, create_model, load_pretrained
from evit_models.checkpoints.reading import read_checkpoint

B0 = "efficientvit3d_b0"


@pytest.fixture
def tensors(reference):
    return dict(reference("b0").tensors)


@pytest.fixture
def refused(tmp_path):
    """Asserts that loading a file raises CheckpointError with these words and changes nothing."""
    model = create_model(B0, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def check(content, words: str, name: str = "bad.pt") -> None:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_pretrained(model, path)
        assert str(path) in str(caught.value)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        assert model.load_report is None

    return check


class RunsCode:
    def __reduce__(self):
        return os.makedirs, ("THIS_MUST_NEVER_APPEAR",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("nest", [False, True])
def test_pickled_code_does_not_run(refused, tensors, tmp_path, monkeypatch, nest):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": tensors, "hook": RunsCode()} if nest else RunsCode()
    refused(content, "could run code")
    for protocol in (2, 4):
        refused(pickle.dumps(RunsCode(), protocol), "could run code|not a readable")
    assert not (tmp_path / "THIS_MUST_NEVER_APPEAR").exists()


def test_whole_module_is_refused(refused):
    refused(torch.nn.Linear(2, 2), r"Save model\.state_dict\(\) instead")


def test_terabyte_of_stride_zero(refused, tensors):
    for name in ("backbone.input_stem.op_list.0.conv.weight", "harmless.looking.extra"):
        huge = torch.ones(1).expand(1 << 20, 1 << 20)
        refused({**tensors, name: huge}, rf"{name} claims 4398046511104 bytes.*holds 4")


def test_sparse_tensor(refused, tensors):
    sparse = torch.eye(3).to_sparse()
    refused({**tensors, "head.op_list.3.linear.bias": sparse}, "not a dense tensor")


def test_compressed_archive(refused, tensors):
    """torch.save stores; deflated zeros are how a small file fills the memory."""
    plain = io.BytesIO()
    torch.save(tensors, plain)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    refused(packed.getvalue(), "is compressed, which torch.save never does")


@pytest.mark.parametrize("keep", [10, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["bad.pt", "bad.safetensors"])
def test_truncated(refused, tensors, kind, keep):
    file = io.BytesIO()
    torch.save(tensors, file)
    content = file.getvalue() if kind == "bad.pt" else save(tensors)
    cut = keep if isinstance(keep, int) else int(len(content) * keep)
    refused(content[:cut], "not a readable|damaged|no PyTorch file", kind)


@pytest.mark.parametrize("name", ["bad.pt", "bad.pth", "bad.safetensors"])
def test_other_files(refused, name):
    refused(b"", "is empty", name)
    refused(b"\x00" * 4096, "not a readable|no PyTorch file", name)
    refused(b"<!doctype html><title>404</title>" * 40, "not a readable|no PyTorch file", name)
    picture = io.BytesIO()
    with zipfile.ZipFile(picture, "w") as archive:
        archive.writestr("cat.txt", "meow")
    refused(picture.getvalue(), "not a readable|no PyTorch file", name)


def test_safetensors_in_disguise(refused, tensors):
    refused(save(tensors), "not a readable|no PyTorch file", "bad.pt")


def header(entries: dict) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 60) + b"{}",
        header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        struct.pack("<Q", 5) + b"\xff\xfe\x00{}",
    ],
    ids=["header size", "shape", "offsets", "dtype", "negative", "not utf-8"],
)
def test_lying_safetensors_header(refused, content):
    refused(content, "not a readable safetensors file", "bad.safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2, 3], "holds a list, expected a dictionary of tensors"),
        (torch.ones(3), "holds a Tensor, expected a dictionary"),
        ({}, "holds no tensors by name; its keys are none"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "holds no tensors by name; its keys are 'epoch'"),
        ({1: torch.ones(2)}, "holds no tensors by name"),
        (OrderedDict(weight=torch.ones(2)), "looks like none of the networks known here"),
    ],
)
def test_nothing_to_load(refused, content, words):
    refused(content, words)


def test_values_that_no_network_has(refused, tensors):
    norm = "backbone.input_stem.op_list.0.norm."
    spoilt = {
        norm + "bias": (torch.full((8,), float("nan")), "stem.*norm.bias holds NaN or infinity"),
        norm + "weight": (torch.full((8,), float("inf")), "stem.*norm.weight holds NaN"),
        norm + "running_var": (torch.full((8,), -1.0), "holds negative variances"),
        norm + "running_mean": (torch.ones(8, dtype=torch.long), "int64, expected floating"),
        "head.op_list.2.linear.weight": (
            torch.ones(3, 3),
            r"head.hidden.weight has shape \(3, 3\), expected \(1280, 1024\)",
        ),
        "backbone.stages.0.op_list.1.main.inverted_conv.conv.weight": (
            torch.ones(64, 16, 1, 1, 1, 1),
            r"has shape \(64, 16, 1, 1, 1, 1\), expected \(64, 16, 1, 1, 1\)",
        ),
        "backbone.stages.0.op_list.1.main.depth_conv.conv.weight": (
            torch.ones(64, 1, 5, 5),
            r"has shape \(64, 1, 5, 5\), expected \(64, 1, 3, 3, 3\)",
        ),
        "head.op_list.3.linear.bias": (torch.ones(()), r"has shape \(\), expected \(10,\)"),
        "head.op_list.3.linear.weight": (torch.ones(10), r"has shape \(10,\), expected \(10, 1280"),
    }
    for name, (value, words) in spoilt.items():
        refused({**tensors, name: value}, words)


def test_missing_backbone_tensors(refused, tensors):
    for name in ("backbone.stages.0.op_list.1.main.depth_conv.norm.running_var",):
        del tensors[name]
    refused(tensors, r"stage1\.blocks\.0\.depthwise\.norm\.running_var is missing")


def test_many_problems_are_counted(refused, tensors):
    for name, tensor in tensors.items():
        if ".stages.3." in name and tensor.is_floating_point() and "point_conv" not in name:
            tensors[name] = torch.full_like(tensor, float("nan"))
    refused(tensors, r"and \d+ more$")


def test_aliased_views_are_fine(tensors, tmp_path):
    """Tensors that share one storage, as some exporters write them, are no reason to refuse."""
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    together = torch.cat([tensors[name].flatten() for name in names])
    offset, views = 0, dict(tensors)
    for name in names:
        size = tensors[name].numel()
        views[name] = together[offset : offset + size].view(tensors[name].shape)
        offset += size
    torch.save(views, tmp_path / "views.pt")
    assert create_model(B0, 10, pretrained=tmp_path / "views.pt").load_report.complete


def test_file_of_the_old_format(tensors, tmp_path):
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert create_model(B0, 10, pretrained=tmp_path / "old.pth").load_report.complete


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.pt"):
        create_model(B0, pretrained=tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        create_model(B0, pretrained=tmp_path)
    (tmp_path / "weights.onnx").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match=r"ends in .safetensors, .pt, .pth, not in '.onnx'"):
        create_model(B0, pretrained=str(tmp_path / "weights.onnx"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_flipped_bytes_are_refused_or_harmless(tmp_path, suffix):
    """Whatever a damaged file makes the readers raise, the caller sees one kind of error."""
    tensors = {"a.weight": torch.randn(3, 2), "b": torch.arange(4), "c": torch.ones(2).half()}
    file = io.BytesIO()
    if suffix == ".safetensors":
        file.write(save(tensors))
    else:
        torch.save({"model": tensors}, file, _use_new_zipfile_serialization=suffix == ".pt")
    content = file.getvalue()
    dice = random.Random(0)
    path = tmp_path / f"damaged{suffix}"
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(dice.choice((1, 2, 8))):
            damaged[dice.randrange(len(damaged))] = dice.choice((0, 128, 255, dice.randrange(256)))
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 40
