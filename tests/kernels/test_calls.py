"""The short way of a call: it gives the same, and steps aside for whatever watches operators."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from joining import WHY_NOT, joins
from known_calls import LAST, Case, cases, forget_every_call, rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evit_kernels import _calls, depthwise_conv3d, relu_linear_attention_qkv
from evit_kernels.relu_linear_attention import native as attention


@pytest.fixture(autouse=True, params=["core", "python"])
def tables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Who knows of calls: the core, where torch describes tensors to it, or Python."""
    new = _calls.PythonTable if request.param == "python" else _calls.tables()
    if not hasattr(Tensor, "__dlpack_c_exchange_api__") and request.param == "core":
        pytest.skip("this torch has no DLPack exchange functions")
    assert (new is _calls.PythonTable) == (request.param == "python")
    with monkeypatch.context() as patch:
        patch.setattr(_calls, "_new_table", new)
        _calls.forget()
        yield
    _calls.forget()


@pytest.fixture(params=range(len(cases())), ids=[case.name for case in cases()])
def case(request: pytest.FixtureRequest) -> Case:
    """A case that was called before, so that it is known."""
    case = cases()[request.param]
    with torch.inference_mode():
        case()
    return case


class Seen(TorchDispatchMode):
    """Writes down the operators that pass torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_short_and_long_way_give_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    short = case()
    forget_every_call(monkeypatch)
    long = case()
    assert torch.equal(short, long)
    assert short.stride() == long.stride()
    assert short.dtype == long.dtype


def test_known_calls_do_not_pass_the_dispatcher(case: Case) -> None:
    if case.name == "pointwise_depthwise_conv3d" and not joins():
        pytest.skip(WHY_NOT)
    with torch.profiler.profile() as warm_up:
        case()
    assert any(f"evit::{case.name}" == event.key for event in warm_up.key_averages())
    found = []
    # Batch norm is more than one call: it is found, and goes on by itself.
    way = "find" if case.name == "batch_norm_activation" else "call"
    find = getattr(_calls.Calls, way)

    def spy(self: Any, *arguments: Any) -> Any:
        found.append(find(self, *arguments))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_calls.Calls, way, spy)
        case()
    assert len(found) == 1
    assert isinstance(found[0], Tensor) if way == "call" else found[0][1].direct is not None


def test_a_dispatch_mode_sees_the_operator(case: Case) -> None:
    with Seen() as seen:
        case()
    assert case.name in seen.names


def test_a_function_mode_sees_the_operator(case: Case) -> None:
    names = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> object:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        case()
    assert any(case.name in name for name in names)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_tracer_sees_the_operator(case: Case) -> None:
    traced = torch.jit.trace(case.function, case.tensors)
    assert case.name in str(traced.graph)


def test_vmap_maps(case: Case) -> None:
    if case.name == "relu_linear_attention_qkv":
        pytest.skip("torch maps no operator that takes a list of tensors")
    stacked = [torch.stack([t, 2 * t]) for t in case.tensors]
    mapped = torch.vmap(case.function)(*stacked)
    for i in range(2):
        torch.testing.assert_close(mapped[i], case.function(*(t[i] for t in stacked)))


def test_subclasses_see_the_operator(case: Case) -> None:
    names = []

    class Watching(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> object:
            names.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    case.function(*(t.as_subclass(Watching) for t in case.tensors))
    assert any(case.name in name for name in names)


def test_gradients_flow_in_a_known_call(case: Case) -> None:
    first = case.tensors[0].requires_grad_()
    case().sum().backward()
    assert first.grad is not None


def test_what_wants_a_gradient_is_asked_of_every_call(case: Case) -> None:
    first = case.tensors[0].requires_grad_()
    for _ in range(2):
        assert case().requires_grad
        with torch.no_grad():
            assert not case().requires_grad
    first.requires_grad_(False)
    assert not case().requires_grad


def test_a_prepared_call_refuses_other_tensors() -> None:
    x = rows(1, 24, 2, 3, 3)
    call = attention.direct([x], 8, 1e-15)
    assert call is not None
    assert torch.equal(call(x), relu_linear_attention_qkv(x, 8))
    with pytest.raises(ValueError, match="other tensors"):
        call(x, x)
    with pytest.raises(RuntimeError, match="no memory"):
        call(torch.empty(0))


def gradients(case: Case) -> list[Tensor]:
    """Of a scalar whose gradient is rows of memory, as between two of our operators."""
    leaves = [t.detach().requires_grad_() for t in case.tensors]
    return list(torch.autograd.grad(case.function(*leaves).square().sum(), leaves))


def test_gradients_of_the_short_and_of_the_long_way_are_the_same(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = gradients(case)
    forget_every_call(monkeypatch)
    for ours, theirs in zip(short, gradients(case), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()
        assert ours.dtype == theirs.dtype


def test_known_gradients_do_not_pass_the_dispatcher(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    direct = _calls.Calls.direct_backward

    def spy(self: Any, *arguments: Any) -> Any:
        calls.append(direct(self, *arguments))
        return calls[-1]

    monkeypatch.setattr(_calls.Calls, "direct_backward", spy)
    gradients(case)
    assert calls
    assert None not in calls
    with torch.profiler.profile() as profile:
        gradients(case)
    # That of both together is that of one after the other.
    names = ("depthwise_conv3d", "pointwise_conv3d") if "pointwise_d" in case.name else (case.name,)
    seen = {event.key for event in profile.key_averages()}
    assert {f"evit::{name}_backward" for name in names} <= seen


def test_memory_is_that_of_the_tensors_whatever_the_default(case: Case) -> None:
    expected = gradients(case)
    with torch.device("meta"):
        for ours, theirs in zip(gradients(case), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_gradients_of_many_at_once(case: Case) -> None:
    if case.name == "relu_linear_attention_qkv":
        pytest.skip("torch maps no operator that takes a list of tensors")
    gradients(case)
    leaves = [t.detach().requires_grad_() for t in case.tensors]
    output = case.function(*leaves)
    noise = torch.stack([torch.randn_like(output) for _ in range(3)])
    batched = torch.autograd.grad(output, leaves, noise, retain_graph=True, is_grads_batched=True)
    for i, row in enumerate(noise):
        single = torch.autograd.grad(output, leaves, row, retain_graph=True)
        for ours, theirs in zip(batched, single, strict=True):
            torch.testing.assert_close(ours[i], theirs)


def test_gradients_keep_no_tensor_alive(case: Case) -> None:
    results = gradients(case)
    references = [weakref.ref(t) for t in (*case.tensors, *results)]
    case.tensors = ()
    results.clear()
    gc.collect()
    assert [r() for r in references] == [None] * len(references)


def test_a_dual_tensor_is_refused_not_dropped(case: Case) -> None:
    with torch.autograd.forward_ad.dual_level():
        first = torch.autograd.forward_ad.make_dual(case.tensors[0], case.tensors[0].clone())
        with pytest.raises(RuntimeError, match="jvp"):
            case.function(first, *case.tensors[1:])


def test_other_memory_of_the_same_shape_is_another_call(case: Case) -> None:
    expected = case()
    planes = case.function(*(t.contiguous() for t in case.tensors))
    assert planes.is_contiguous()
    torch.testing.assert_close(planes.contiguous(memory_format=LAST), expected)
    sliced = [torch.stack([t, t], -1)[..., 0] for t in case.tensors]
    torch.testing.assert_close(case.function(*sliced).contiguous(), expected.contiguous())


def test_negative_views_keep_their_sign(case: Case) -> None:
    first, *others = case.tensors
    view = torch._neg_view(first)
    assert view.stride() == first.stride()
    torch.testing.assert_close(case.function(view, *others), case.function(-first, *others))


def zeros_without_memory(like: Tensor) -> Tensor:
    return torch._efficientzerotensor(like.shape).as_strided(like.shape, like.stride())


def test_zeros_without_memory_are_zeros(case: Case) -> None:
    first, *others = case.tensors
    result = case.function(zeros_without_memory(first), *others)
    torch.testing.assert_close(result, case.function(torch.zeros_like(first), *others))


def test_gradients_of_zeros_without_memory_are_zeros(case: Case) -> None:
    gradients(case)
    leaves = [t.detach().requires_grad_() for t in case.tensors]
    output = case.function(*leaves)
    for gradient in torch.autograd.grad(output, leaves, zeros_without_memory(output)):
        assert not gradient.any()


def test_no_tensor_is_kept_alive(case: Case) -> None:
    with torch.inference_mode():
        result = case()
    references = [weakref.ref(t) for t in (*case.tensors, result)]
    case.tensors = ()
    del result
    gc.collect()
    assert [r() for r in references] == [None] * len(references)


def test_threads_may_change_between_calls(case: Case) -> None:
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            results.append(case())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results)


def test_the_environment_may_change_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = rows(1, 4, 2, 3, 3), torch.randn(4, 1, 3, 3, 3)
    for name, passes in (("native", True), ("reference", False), ("native", True)):
        monkeypatch.setenv("EVIT_BACKEND", name)
        for _ in range(2):
            with Seen() as seen:
                depthwise_conv3d(x, weight, padding=1)
            assert ("depthwise_conv3d" in seen.names) == passes
    monkeypatch.setenv("EVIT_BACKEND", "unknown")
    with pytest.raises(ValueError, match="unknown"):
        depthwise_conv3d(x, weight, padding=1)


def test_autocast_is_seen_by_a_known_call() -> None:
    x, weight = rows(1, 4, 2, 3, 3), torch.randn(4, 1, 3, 3, 3)
    for _ in range(2):
        assert depthwise_conv3d(x, weight, padding=1).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert depthwise_conv3d(x, weight, padding=1).dtype == torch.bfloat16


@pytest.mark.parametrize("stride", [True, 1.0, (True, 1, 1), (1, 1.0, 1)], ids=str)
def test_values_that_are_equal_but_of_another_type_are_checked(stride: Any) -> None:
    x, weight = rows(1, 4, 2, 3, 3), torch.randn(4, 1, 3, 3, 3)
    depthwise_conv3d(x, weight, stride=1, padding=1)
    depthwise_conv3d(x, weight, stride=(1, 1, 1), padding=1)
    with pytest.raises(TypeError, match="stride"):
        depthwise_conv3d(x, weight, stride=stride, padding=1)


def test_a_list_may_change_between_calls() -> None:
    x, weight = rows(1, 4, 2, 8, 8), torch.randn(4, 1, 1, 1, 1)
    stride = [1, 1, 1]
    assert depthwise_conv3d(x, weight, stride=stride).shape[-1] == 8
    stride[2] = 2
    assert depthwise_conv3d(x, weight, stride=stride).shape[-1] == 4


def test_many_shapes_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls.Calls, "_MOST", 3)
    weight = torch.randn(4, 1, 3, 3, 3)
    for width in (3, 4, 5, 6, 7, 3, 4):
        x = rows(1, 4, 2, 3, width)
        expected = F.conv3d(x, weight, padding=1, groups=4)
        torch.testing.assert_close(depthwise_conv3d(x, weight, padding=1), expected)
