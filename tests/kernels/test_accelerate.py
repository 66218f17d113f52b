"""accelerate on models that are not ours: everything that worked before works afterwards."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn
from video_networks import MoViNetLike, X3DLike

from evit_kernels import accelerate
from evit_kernels.nn import DepthwiseConv3d

MODELS = [X3DLike, MoViNetLike]
Model = X3DLike | MoViNetLike


def _clip() -> Tensor:
    return torch.randn(2, 3, 5, 18, 20)


def _pair(kind: type[Model]) -> tuple[Model, Model]:
    """A model and its accelerated twin."""
    model = kind()
    twin = copy.deepcopy(model)
    accelerate(twin)
    return model, twin


def _assert_close(ours: Tensor | None, theirs: Tensor | None, name: str = "") -> None:
    torch.testing.assert_close(
        ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}"
    )


@pytest.mark.parametrize("kind", MODELS)
def test_report_names_what_was_replaced(kind: type[Model]) -> None:
    model = kind()
    report = accelerate(model)
    assert report.replaced == kind.depthwise
    modules = dict(model.named_modules())
    assert all(type(modules[name]) is DepthwiseConv3d for name in report.replaced)
    left = {entry.name: entry.reason for entry in report.skipped}
    convolutions = {name for name, module in modules.items() if isinstance(module, nn.Conv3d)}
    assert set(left) == convolutions - set(report.replaced)
    assert all(reason.startswith("not depthwise") for reason in left.values())
    text = str(report)
    assert text.startswith(f"{len(kind.depthwise)} of {len(convolutions)} 3-D convolutions")
    assert all(name in text for name in convolutions)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_gradients_stay(
    kind: type[Model], training: bool, memory_format: torch.memory_format
) -> None:
    model, twin = _pair(kind)
    x = _clip().contiguous(memory_format=memory_format)
    outputs = []
    for network in (model, twin):
        network.train(training).to(memory_format=memory_format)
        clip = x.clone().requires_grad_()
        output = network(clip)
        output.square().sum().backward()
        outputs.append((output, clip.grad))
    for ours, theirs in zip(outputs[1], outputs[0], strict=True):
        _assert_close(ours, theirs)
    parameters = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        _assert_close(parameter.grad, parameters[name].grad, name)
    buffers = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        _assert_close(buffer, buffers[name], name)


@pytest.mark.parametrize("kind", MODELS)
def test_an_optimizer_made_before_goes_on(kind: type[Model]) -> None:
    model = kind()
    twin = copy.deepcopy(model)
    networks, optimizers = (model, twin), []
    for network in networks:
        optimizers.append(torch.optim.AdamW(network.parameters(), lr=1e-3))
    targets = torch.tensor([1, 3])
    for step in range(4):
        if step == 2:
            parameters = list(twin.parameters())
            accelerate(twin)
            assert all(x is y for x, y in zip(parameters, twin.parameters(), strict=True))
        x = _clip()
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), targets).backward()
            optimizer.step()
    for (name, ours), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        # Adam divides by the gradient's size, which makes much of the smallest differences.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-4, msg=name)


@pytest.mark.parametrize("kind", MODELS)
def test_state_dicts_pass_in_both_directions(kind: type[Model]) -> None:
    model, twin = _pair(kind)
    assert list(twin.state_dict()) == list(model.state_dict())
    other = kind()
    twin.load_state_dict(other.state_dict(), strict=True)
    model.load_state_dict(twin.state_dict(), strict=True)
    x = _clip()
    _assert_close(twin.eval()(x), other.eval()(x))
    _assert_close(model.eval()(x), other(x))


@pytest.mark.parametrize("kind", MODELS)
def test_copies_pickles_and_files(kind: type[Model]) -> None:
    _, twin = _pair(kind)
    x = _clip()
    expected = twin.eval()(x)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    restored = [
        copy.deepcopy(twin),
        pickle.loads(pickle.dumps(twin)),
        torch.load(file, weights_only=False),
    ]
    for network in restored:
        kinds = dict(network.named_modules())
        assert all(type(kinds[name]) is DepthwiseConv3d for name in kind.depthwise)
        assert torch.equal(network(x), expected)


def test_hooks_of_every_kind_keep_firing() -> None:
    conv = nn.Conv3d(4, 4, 3, padding=1, groups=4)
    calls: list[str] = []

    def note(name: str) -> object:
        return lambda *_: calls.append(name)

    conv.register_forward_pre_hook(note("forward pre"))
    conv.register_forward_hook(note("forward"))
    conv.register_full_backward_pre_hook(note("backward pre"))
    conv.register_full_backward_hook(note("backward"))
    conv.register_state_dict_pre_hook(note("state dict"))
    conv.register_load_state_dict_post_hook(note("load state dict"))
    assert accelerate(nn.Sequential(conv)).replaced == ("0",)
    conv(torch.randn(1, 4, 3, 5, 5, requires_grad=True)).sum().backward()
    conv.load_state_dict(conv.state_dict())
    assert calls == [
        "forward pre",
        "forward",
        "backward pre",
        "backward",
        "state dict",
        "load state dict",
    ]


def test_buffers_flags_and_attributes_stay() -> None:
    conv = nn.Conv3d(4, 4, 3, groups=4).eval()
    conv.register_buffer("calls", torch.tensor(3))
    conv.weight.requires_grad_(False)
    conv.note = "ours"
    weight, bias = conv.weight, conv.bias
    accelerate(nn.ModuleList([conv]))
    assert isinstance(conv, DepthwiseConv3d)
    assert (conv.weight is weight, conv.bias is bias, conv.training) == (True, True, False)
    assert (int(conv.calls), conv.note, weight.requires_grad) == (3, "ours", False)


def test_a_shared_module_stays_shared_and_has_both_names() -> None:
    shared = nn.Conv3d(4, 4, 3, padding=1, groups=4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)})
    report = accelerate(model)
    assert report.replaced == ("a", "b.1")
    assert model["a"] is model["b"][1] is shared


def test_the_model_itself_can_be_a_convolution() -> None:
    conv = nn.Conv3d(4, 4, (1, 3, 5), (1, 2, 1), (0, 1, 2), groups=4)
    x = torch.randn(1, 4, 3, 6, 6)
    expected = conv(x)
    assert accelerate(conv).replaced == ("(the model itself)",)
    _assert_close(conv(x), expected)


def test_a_single_clip_without_batch() -> None:
    conv = nn.Conv3d(4, 4, 3, groups=4)
    x = torch.randn(4, 3, 6, 6)
    expected = conv(x)
    accelerate(conv)
    _assert_close(conv(x), expected)


@pytest.mark.parametrize(("padding", "kernel"), [("same", (3, 5, 1)), ("valid", 3), (2, 4)])
def test_paddings_in_words_and_numbers(padding: str | int, kernel: int) -> None:
    conv = nn.Conv3d(6, 6, kernel, padding=padding, dilation=(1, 2, 1), groups=6)
    x = torch.randn(1, 6, 5, 9, 8)
    expected = conv(x)
    assert accelerate(conv).skipped == ()
    assert "padding" in repr(conv) or padding == "valid"
    _assert_close(conv(x), expected)


def test_weight_normalisation_by_hook_is_kept() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecation
        conv = nn.utils.weight_norm(nn.Conv3d(4, 4, 3, groups=4), dim=0)
    x = torch.randn(1, 4, 3, 5, 5)
    model = nn.Sequential(conv)
    expected = model(x)
    assert accelerate(model).replaced == ("0",)
    _assert_close(model(x), expected)
    conv.weight_g.data.mul_(2)
    bias = conv.bias.detach().view(-1, 1, 1, 1)
    _assert_close(model(x) - bias, 2 * (expected - bias))
    assert list(model.state_dict()) == ["0.bias", "0.weight_g", "0.weight_v"]


def test_a_compiled_model_is_compiled_again() -> None:
    model = nn.Sequential(nn.Conv3d(4, 4, 3, groups=4), nn.ReLU())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(1, 4, 3, 5, 5)
    expected = compiled(x)
    accelerate(model)
    _assert_close(compiled(x), expected)


class _Mine(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def _overwritten() -> nn.Module:
    conv = nn.Conv3d(4, 4, 3, groups=4)
    conv.forward = lambda x: x  # type: ignore[method-assign]
    return conv


def _scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's deprecation
        return torch.jit.script(nn.Conv3d(4, 4, 3, groups=4))


def _quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecation of quantised tensors
        return torch.ao.nn.quantized.Conv3d(4, 4, 3, groups=4)


LEFT = [
    (lambda: nn.Conv3d(4, 4, 3), "not depthwise: 4 channels in 1 group"),
    (lambda: nn.Conv3d(4, 4, 3, groups=2), "not depthwise: 4 channels in 2 groups"),
    (lambda: nn.Conv3d(4, 8, 3, groups=4), "2 outputs per channel instead of one"),
    (lambda: nn.Conv3d(4, 4, (1, 9, 9), groups=4), "kernel (1, 9, 9) is larger than 7"),
    (
        lambda: nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular", groups=4),
        "padding_mode 'circular' instead of 'zeros'",
    ),
    (
        lambda: nn.Conv3d(4, 4, (2, 3, 3), padding="same", groups=4),
        "padding='same' with kernel (2, 3, 3) is not symmetric",
    ),
    (
        lambda: nn.Conv3d(4, 4, 3, groups=4, dtype=torch.complex64),
        "there are no kernels for torch.complex64",
    ),
    (lambda: _Mine(4, 4, 3, groups=4), "a subclass of nn.Conv3d, _Mine, which may compute"),
    (lambda: nn.LazyConv3d(4, 3, groups=4), "lazy: its channels are unknown"),
    (
        lambda: nn.utils.parametrizations.weight_norm(nn.Conv3d(4, 4, 3, groups=4)),
        "parametrised (weight): its class computes the parameter",
    ),
    (_quantized, "quantised: its weights are"),
    (_overwritten, "its forward was overwritten on the instance"),
    (_scripted, "scripted: TorchScript has compiled its class"),
    (lambda: DepthwiseConv3d(4, 3), "already ours"),
]


@pytest.mark.parametrize(("make", "reason"), LEFT, ids=[reason for _, reason in LEFT])
def test_what_is_left_says_why(make: type[nn.Module], reason: str) -> None:
    module = make()
    kind = type(module)
    report = accelerate(nn.Sequential(nn.ReLU(), module))
    assert report.replaced == ()
    assert [entry.name for entry in report.skipped] == ["1"]
    assert report.skipped[0].reason.startswith(reason)
    assert type(module) is kind
    assert reason in str(report)


def test_calling_it_twice_changes_nothing_more() -> None:
    model = X3DLike()
    accelerate(model)
    before = {name: type(module) for name, module in model.named_modules()}
    report = accelerate(model)
    assert report.replaced == ()
    already = tuple(entry.name for entry in report.skipped if entry.reason == "already ours")
    assert already == X3DLike.depthwise
    assert before == {name: type(module) for name, module in model.named_modules()}


def test_a_model_without_convolutions() -> None:
    report = accelerate(nn.Sequential(nn.Linear(3, 3), nn.Conv2d(3, 3, 3, groups=3)))
    assert (report.replaced, report.skipped) == ((), ())
    assert str(report) == "0 of 0 3-D convolutions replaced"


def test_something_that_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"accelerate: model must be an nn\.Module, got dict"):
        accelerate({})  # type: ignore[arg-type]
