"""Whole networks as users run them: layouts, training, precision, backends, compilation."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys

import pytest
import torch
from plain2d import relative_error
from torch import nn

from evit_models import create_model, set_backend
from evit_models.blocks import Block


def lively(name: str = "efficientvit3d_b0", num_classes: int = 10, **arguments):
    """A model whose residual branches do something from the first step."""
    torch.manual_seed(0)
    model = create_model(name, num_classes, **arguments)
    with torch.no_grad():
        for tensor_name, tensor in model.state_dict().items():
            if tensor_name.endswith("norm.weight"):
                tensor.uniform_(0.5, 1.0)
            elif tensor.dim() > 1:
                tensor.normal_(0.0, (1.0 / tensor[0].numel()) ** 0.5)
    return model


@torch.no_grad()
@pytest.mark.parametrize("variant", ["b0", "l0"])
def test_layouts_agree(variant):
    model = lively(f"efficientvit3d_{variant}").eval()
    clip = torch.randn(2, 3, 4, 40, 40)
    expected = model(clip)
    last = clip.contiguous(memory_format=torch.channels_last_3d)
    by_frame = clip.transpose(1, 2).contiguous().transpose(1, 2)  # what a reader of frames gives
    sliced = torch.randn(2, 5, 9, 50, 44)[:, 1:4, 1::2, 4:44, 2:42].copy_(clip)
    for view in (last, by_frame, sliced):
        torch.testing.assert_close(model(view), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_input_is_left_alone():
    model = lively().eval()
    clip = torch.randn(2, 3, 4, 40, 40)
    before = clip.clone()
    model(clip)
    assert torch.equal(clip, before)


@pytest.mark.parametrize("variant", ["b0", "l0"])
def test_every_parameter_gets_a_gradient(variant):
    model = lively(f"efficientvit3d_{variant}", drop_path=0.1, dropout=0.1).train()
    clip = torch.randn(2, 3, 4, 64, 64)
    loss = nn.functional.cross_entropy(model(clip), torch.tensor([1, 2]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_fresh_model_trains():
    torch.manual_seed(0)
    model = create_model("efficientvit3d_b0", 2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    clip = torch.randn(4, 3, 2, 32, 32)
    target = torch.tensor([0, 1, 0, 1])
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(clip), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_training_updates_statistics_and_eval_does_not():
    model = lively().train()
    clip = torch.randn(2, 3, 2, 64, 64)
    before = copy.deepcopy(model.state_dict())
    model(clip)
    norm = "stage4.downsample.project.norm."
    assert int(model.state_dict()[norm + "num_batches_tracked"]) == 1
    assert not torch.equal(model.state_dict()[norm + "running_mean"], before[norm + "running_mean"])
    frozen = copy.deepcopy(model.eval().state_dict())
    model(clip)
    assert all(torch.equal(a, frozen[name]) for name, a in model.state_dict().items())


def test_drop_path_grows_linearly():
    model = create_model("efficientvit3d_b1", drop_path=0.3)
    rates = [m.drop_path for m in model.modules() if isinstance(m, Block) and m.residual]
    steps = list(dict.fromkeys(rates))  # the two branches of an attention block share one
    assert len(steps) == 1 + 1 + 2 + 3 + 4
    assert steps == pytest.approx([0.3 * i / 10 for i in range(11)])
    strided = [m.drop_path for m in model.modules() if isinstance(m, Block) and not m.residual]
    assert set(strided) == {0.0}


@torch.no_grad()
def test_half_precision_is_near():
    model = lively().eval()
    clip = torch.randn(2, 3, 4, 64, 64)
    expected = model(clip)
    for dtype, bound in ((torch.bfloat16, 0.1), (torch.float16, 0.01)):
        half = copy.deepcopy(model).to(dtype)
        logits = half(clip.to(dtype))
        assert logits.dtype == dtype
        assert relative_error(logits.float(), expected) < bound


def test_autocast_trains_and_answers():
    model = lively()
    clip = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        expected = model.eval()(clip)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(clip)
    assert relative_error(logits.float(), expected) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model.train()(clip), torch.tensor([1, 2]))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@torch.no_grad()
def test_backends_agree_and_reach_every_operator():
    model = lively(backend="reference").eval()
    clip = torch.randn(2, 3, 4, 64, 64)
    backends = {m.backend for m in model.modules() if hasattr(m, "backend")}
    assert backends == {"reference"}
    expected = model(clip)
    set_backend(model, None)
    assert {m.backend for m in model.modules() if hasattr(m, "backend")} == {None}
    assert relative_error(model(clip), expected) < 1e-5


@torch.no_grad()
def test_copies_and_pickles():
    model = lively().eval()
    clip = torch.randn(1, 3, 2, 32, 32)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(again(clip), model(clip))


@torch.no_grad()
def test_batch_and_single_agree():
    model = lively().eval()
    clips = torch.randn(3, 3, 4, 48, 32)
    singles = torch.cat([model(clip[None]) for clip in clips])
    torch.testing.assert_close(model(clips), singles, rtol=1e-4, atol=1e-5)


def test_compiles_in_one_graph():
    model = lively().eval()
    clip = torch.randn(1, 3, 2, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(clip), model(clip), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    model.train()
    clip = clip.repeat(2, 1, 1, 2, 2)
    trained = torch.compile(model, fullgraph=True, backend="aot_eager")
    trained(clip).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_exports():
    model = lively().eval()
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        program = torch.export.export(model, (clip,))
        torch.testing.assert_close(program.module()(clip), model(clip), rtol=1e-4, atol=1e-5)


def test_import_is_light():
    """No video, no terminal library, no Triton, no CUDA context for who only wants a model."""
    code = (
        "import sys, evit_models, torch;"
        "heavy = [m for m in ('av', 'rich', 'click', 'triton') if m in sys.modules];"
        "assert not heavy, heavy; assert not torch.cuda.is_initialized()"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
