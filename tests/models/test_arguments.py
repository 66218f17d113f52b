"""Bad input gets an error of the right type that names the argument, what it got, what fits."""

from __future__ import annotations

import pytest
import torch

from evit_kernels import backends
from evit_models import create_model, registry, set_backend
from evit_models.registry import prefer_backend

B0 = "efficientvit3d_b0"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"name": "efficientvit3d_b9"}, ValueError, "unknown model 'efficientvit3d_b9', did you"),
        ({"name": "resnet50"}, ValueError, "unknown model 'resnet50'.*efficientvit3d_l3"),
        ({"name": 3}, ValueError, "unknown model 3"),
        ({"num_classes": -1}, ValueError, "num_classes must be at least 0, got -1"),
        ({"num_classes": 2.5}, TypeError, "num_classes must be an int, got float"),
        ({"num_classes": True}, TypeError, "num_classes must be an int, got bool"),
        ({"temporal_strides": "fast"}, ValueError, "temporal_strides must be 'tubelet'.*'fast'"),
        ({"temporal_strides": (1, 2)}, ValueError, r"five ints.*got 2: \(1, 2\)"),
        ({"temporal_strides": (1, 1, 0, 1, 1)}, ValueError, "temporal_strides must be five ints"),
        ({"temporal_strides": (1, 1, 1.5, 1, 1)}, ValueError, "temporal_strides must be five"),
        ({"temporal_strides": 2}, TypeError, "temporal_strides must be a name or five ints.*int"),
        ({"temporal_padding": "same"}, ValueError, "temporal_padding must be None or.*'same'"),
        (
            {"temporal_kernel": 2},
            ValueError,
            r"temporal_kernel must be one of \(1, 3, 5, 7\)",
        ),
        ({"temporal_kernel": "3"}, ValueError, "temporal_kernel must be one of"),
        (
            {"aggregation_temporal_kernel": 7},
            ValueError,
            r"aggregation_temporal_kernel must be one of \(1, 3, 5\), got 7",
        ),
        ({"inflation": "max"}, ValueError, "inflation must be one of 'center', 'mean', got 'max'"),
        ({"drop_path": 1.0}, ValueError, "drop_path must be at least 0 and below 1, got 1.0"),
        ({"drop_path": "0.1"}, ValueError, "drop_path must be"),
        ({"dropout": -0.1}, ValueError, "dropout must be at least 0 and below 1, got -0.1"),
        ({"backend": "cuda"}, ValueError, "backend must be None or one of 'reference'.*'cuda'"),
    ],
)
def test_create_model(arguments, error, words):
    with pytest.raises(error, match=words), torch.device("meta"):
        create_model(**{"name": B0, **arguments})


@pytest.fixture(scope="module")
def model():
    return create_model(B0, 5).eval()


@pytest.mark.parametrize(
    ("clip", "error", "words"),
    [
        ("clip", TypeError, "input must be a Tensor of .*, got str"),
        (torch.ones(3, 4, 8, 8), ValueError, r"5 dimensions .*, got 4: .*image\[:, :, None\]"),
        (torch.ones(8), ValueError, r"input must have 5 dimensions .*, got 1: \(8,\)"),
        (torch.ones(1, 4, 2, 8, 8), ValueError, r"3 channels .*, got 4: \(1, 4, 2, 8, 8\)"),
        (torch.ones(1, 2, 3, 8, 8), ValueError, "got 2: .*channels come before time"),
        (torch.ones(1, 3, 0, 8, 8), ValueError, "T = 0"),
        (torch.ones(1, 3, 2, 0, 8), ValueError, "H = 0"),
        (torch.ones(1, 3, 2, 8, 0), ValueError, "W = 0"),
        (torch.ones(1, 3, 2, 8, 8, dtype=torch.uint8), TypeError, "floating point.*uint8"),
        (torch.ones(1, 3, 2, 8, 8).double(), TypeError, "float64, the model's weights are .*32"),
        (torch.ones(1, 3, 2, 8, 8, device="meta"), RuntimeError, "on meta, .* on cpu"),
    ],
)
def test_forward(model, clip, error, words):
    for call in (model, model.forward_features):
        with pytest.raises(error, match=words):
            call(clip)


def test_set_backend(model):
    with pytest.raises(ValueError, match="backend must be None or one of"):
        set_backend(model, "fast")


def test_reset_classifier(model):
    with pytest.raises(ValueError, match="num_classes must be at least 0"):
        model.reset_classifier(-3)


def test_a_preferred_backend_serves_where_it_can(model, monkeypatch):
    with pytest.raises(ValueError, match="backend must be None or one of"):
        prefer_backend(model, "fast", "cpu")
    modules = [m for m in model.modules() if hasattr(m, "backend")]
    everything = prefer_backend(model, "native", "cpu")
    # No module is for it: inverted bottlenecks call it with the backend of their layers.
    assert sorted([*everything, "pointwise_depthwise_conv3d"]) == sorted(backends.OPERATORS)
    assert all(m.backend == "native" for m in modules)
    # As on a GPU, where native kernels serve two operators.
    monkeypatch.setattr(
        registry,
        "available_backends",
        lambda device, name: ("native",) if name in backends.CUDA_OPERATORS else ("reference",),
    )
    assert sorted(prefer_backend(model, "native", "cuda")) == sorted(backends.CUDA_OPERATORS)
    chosen = {type(m).__name__ for m in modules if m.backend == "native"}
    assert chosen == {"DepthwiseConv3d", "LiteMLA"}
    assert all(m.backend in ("native", None) for m in modules)
