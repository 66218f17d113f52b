"""What the loop is made of, each by itself: order, schedule, decay, average, loss, figures."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evit_models import create_model
from evit_models.training import ConfigError, load_config
from evit_models.training.ema import AveragedModel
from evit_models.training.loading import bottleneck
from evit_models.training.metrics import (
    Predictions,
    confusion_matrix,
    figures,
    majority_figures,
    merge,
)
from evit_models.training.networks import freeze, recompute_blocks, train_mode
from evit_models.training.objective import Heads
from evit_models.training.optimizer import (
    decay_weights,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from evit_models.training.sampler import StepSampler, evaluation_shard
from evit_models.training.schedule import learning_rate_scale


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sampler_takes_every_clip_at_most_once(world: int) -> None:
    samplers = [StepSampler(101, 4, 2, rank, world, seed=5) for rank in range(world)]
    taken = list(chain.from_iterable(chain(*(s.batches(epoch=3) for s in samplers))))
    assert len(taken) == len(set(taken)) == samplers[0].steps * 8 * world
    assert len(samplers[0].batches(3)) == 2 * samplers[0].steps


def test_sampler_goes_on_at_a_step() -> None:
    sampler = StepSampler(100, 4, 3, rank=1, world=2, seed=1)
    assert sampler.batches(7, first_step=2) == sampler.batches(7)[6:]
    assert sampler.batches(7) != sampler.batches(8)
    assert sampler.batches(7) != sampler._replace(seed=2).batches(7)


def test_sampler_refuses_too_few_clips() -> None:
    with pytest.raises(ConfigError, match=r"takes 16 clips \(4 x 2 batches x 2 processes\)"):
        _ = StepSampler(15, 4, 2, 0, 2).steps


@pytest.mark.parametrize(("length", "world"), [(10, 1), (10, 3), (1, 2)])
def test_evaluation_shards_are_a_partition(length: int, world: int) -> None:
    shards = [evaluation_shard(length, rank, world) for rank in range(world)]
    assert sorted(chain(*shards)) == list(range(length))


def test_learning_rate() -> None:
    rates = [learning_rate_scale(s, warmup=4, total=20, final=0.1) for s in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate_scale(0, warmup=0, total=1, final=0.0) == 1.0


@pytest.mark.parametrize("name", ["efficientvit3d_b0", "efficientvit3d_l0"])
def test_only_matrices_decay_and_all_parameters_are_there_once(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 5)
    groups = parameter_groups(model, 0.05, 0.8)
    names = list(chain.from_iterable(group["names"] for group in groups))
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    norms = {
        f"{n}.{p}"
        for n, module in model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm))
        for p, _ in module.named_parameters()
    }
    for group in groups:
        vectors = norms | {n for n in group["names"] if n.endswith("bias")}
        assert (group["weight_decay"] == 0) == bool(vectors & set(group["names"]))


def test_layer_decay_falls_from_head_to_stem() -> None:
    model = create_model("efficientvit3d_b0", 5)
    scale = {
        name: group["lr_scale"]
        for group in parameter_groups(model, 0.05, 0.5)
        for name in group["names"]
    }
    assert scale["head.classifier.weight"] == scale["head.expand.conv.weight"] == 1.0
    assert scale["stage4.blocks.1.attention.qkv.weight"] == 0.5
    assert scale["stage4.blocks.0.attention.qkv.weight"] == 0.25
    assert scale["stage4.downsample.expand.conv.weight"] == 0.125
    assert min(scale, key=lambda name: scale[name]).startswith("stem.downsample")


def test_sgd_decay_is_decoupled() -> None:
    """With a zero gradient, a step changes weights by lr times decay, whatever the momentum."""
    model = create_model("efficientvit3d_b0", 5)
    config = load_config(overrides={"optimizer": "sgd", "lr": 0.5, "weight_decay": 0.1})
    optimizer = make_optimizer(model, config)
    weight, bias = model.head.classifier.weight, model.head.classifier.bias
    nn.init.ones_(bias)
    before = weight.detach().clone()
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        set_learning_rate(optimizer, 0.5)
        decay_weights(optimizer)
        optimizer.step()
    torch.testing.assert_close(weight, before * 0.95**2)
    assert (bias == 1).all()


def test_average_follows() -> None:
    model = nn.BatchNorm1d(3)
    average = AveragedModel(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(7.0)
    average.update(model)  # decay 0.1, the first of all
    assert torch.allclose(average.model.weight, torch.full((3,), 0.1 * 1 + 0.9 * 3))
    assert (average.model.running_mean == 7).all()
    copy = AveragedModel(model, decay=0.5)
    copy.load_state_dict(average.state_dict())
    for one in (average, copy):
        one.update(model)
    assert torch.equal(average.model.weight, copy.model.weight)
    assert not average.model.weight.requires_grad


def test_one_head_is_cross_entropy() -> None:
    heads, logits, label = Heads(4), torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = F.cross_entropy(logits, label, label_smoothing=0.1)
    assert torch.equal(heads.loss(logits, heads.targets(label), 0.1), expected)
    assert heads.correct(logits, heads.targets(label)) == (logits.argmax(1) == label).sum()


def test_two_heads_are_two_losses() -> None:
    heads, logits = Heads({"verb": 3, "noun": 5}), torch.randn(4, 8)
    label = {"verb": torch.tensor([0, 2, 1, 0]), "noun": torch.tensor([4, 0, 1, 2])}
    expected = F.cross_entropy(logits[:, :3], label["verb"]) + F.cross_entropy(
        logits[:, 3:], label["noun"]
    )
    assert heads.total == 8
    assert torch.equal(heads.loss(logits, heads.targets(label)), expected)


def test_mixed_targets_are_not_smoothed_twice() -> None:
    heads, logits = Heads(3), torch.randn(2, 3)
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(heads.loss(logits, {"class": shares}, 0.1), F.cross_entropy(logits, shares))


def test_figures_by_hand() -> None:
    found = Predictions(
        index=np.arange(6),
        label=np.array([0, 0, 0, 0, 1, 2]),
        best=np.array([[0, 1], [0, 2], [1, 0], [0, 1], [0, 1], [2, 0]]),
        loss=np.full(6, 2.0),
        shares=np.full((6, 2), 0.5),
    )
    row = figures(found, 4)
    assert row["top1"] == pytest.approx(4 / 6)
    assert row["top5"] == pytest.approx(6 / 6)
    assert row["mean_class"] == pytest.approx((3 / 4 + 0 + 1) / 3)
    assert row["majority"] == pytest.approx(4 / 6)
    assert row["predicted_majority"] == pytest.approx(4 / 6)
    assert (row["loss"], row["clips"], row["classes"]) == (2.0, 6, 3)
    assert majority_figures(found.label) == {
        "class": 0, "top1": 4 / 6, "top5": 1.0, "mean_class": 1 / 3,
    }  # fmt: skip
    assert confusion_matrix(found, 4).tolist() == [
        [3, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 0],
    ]
    assert figures(Predictions(), 4) == {"clips": 0}


def test_merged_shards_count_every_clip_once() -> None:
    rng = np.random.default_rng(0)
    whole = Predictions(
        np.arange(11), rng.integers(0, 3, 11), rng.integers(0, 3, (11, 2)), rng.random(11),
        rng.random((11, 2)),
    )  # fmt: skip
    # The third shard repeats a clip, as padding would.
    takes = ([0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 0])
    parts = [Predictions(*(v[t] for v in vars(whole).values())) for t in takes]
    assert figures(merge([Predictions(), *parts]), 3) == figures(whole, 3)


@pytest.mark.parametrize(
    ("what", "learns", "rests"),
    [
        ("none", ["stem.downsample.conv.weight", "head.classifier.bias"], []),
        ("backbone", ["head.expand.conv.weight"], ["stage4.downsample.depthwise.conv.weight"]),
        (
            "spatial",
            [
                "stem.downsample.conv.weight",
                "stage4.blocks.0.attention.aggregate.0.depthwise.weight",
            ],
            ["stage1.downsample.expand.conv.weight", "stage1.downsample.expand.norm.weight"],
        ),
        ("norm", ["stem.downsample.conv.weight"], ["stem.downsample.norm.bias"]),
    ],
)
def test_freeze(what: str, learns: list[str], rests: list[str]) -> None:
    model = create_model("efficientvit3d_b0", 3)
    freeze(model, what)
    assert all(model.get_parameter(name).requires_grad for name in learns)
    assert not any(model.get_parameter(name).requires_grad for name in rests)
    train_mode(model)
    assert model.stem.downsample.norm.training == (what == "none")


def test_recomputed_blocks_change_nothing() -> None:
    """Gradients, drop path and the statistics of norms have the same bits."""
    results = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        model = create_model("efficientvit3d_b0", 3, drop_path=0.5, dropout=0.5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        if recomputed:
            recompute_blocks(model)
        model(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()
        results.append([*(p.grad for p in model.parameters()), *model.buffers()])
    for plain, twice in zip(*results, strict=True):
        assert torch.equal(plain, twice)


def test_bottleneck_says_what_to_do() -> None:
    assert bottleneck(1.0, 10.0, 2) is None
    advice = bottleneck(6.0, 10.0, 2)
    assert advice is not None
    assert advice.startswith("60 % of the time")
    assert "evit prepare" in advice
    assert "workers, now 2" in advice
