"""dense_conv3d: values, derivatives, bits, and its registration with torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from depthwise_cases import ACTIVATIONS, DTYPES, LAYOUTS, lay_out
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from evit_kernels import dense_conv3d
from evit_kernels.depthwise_conv3d.geometry import TEMPORAL_PADDINGS

FORWARD_OP = torch.ops.evit.dense_conv3d.default
BACKWARD_OP = torch.ops.evit.dense_conv3d_backward.default
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """One call, without its data."""

    batch: int
    in_channels: int
    out_channels: int
    size: Triple
    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 2, 2)
    padding: Triple = (1, 1, 1)
    temporal_padding: str = "zeros"
    activation: str | None = None
    bias: bool = True
    layout: str = "channels_last"
    dtype: torch.dtype = torch.float32

    def label(self) -> str:
        """A short name for test reports."""
        return f"{self.in_channels}to{self.out_channels}-{self.temporal_padding}-{self.layout}"

    @property
    def fits(self) -> bool:
        """Whether the kernel fits the padded input, so that there is an output."""
        pads = [2 * p for p in self.padding]
        if self.temporal_padding == "causal":
            pads[0] = self.kernel[0] - 1
        return all(s + p >= k for s, p, k in zip(self.size, pads, self.kernel, strict=True))

    def tensors(self) -> list[Tensor]:
        """Input, weight and, where there is one, bias; always the same."""
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        x = lay_out(randn(self.batch, self.in_channels, *self.size), self.layout)
        weight = randn(self.out_channels, self.in_channels, *self.kernel)
        return [x, weight, *([randn(self.out_channels)] if self.bias else [])]

    def call(self, tensors: list[Tensor], backend: str = "native") -> Tensor:
        """Calls the operator with what `tensors` returns, or the like."""
        input, weight, bias = tensors if self.bias else (*tensors, None)
        return dense_conv3d(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            temporal_padding=self.temporal_padding,
            activation=self.activation,
            backend=backend,
        )


# Whole and partial vectors of channels, blocks of columns and tiles of rows; splits of the sum.
CASES = [
    Case(2, 3, 16, (5, 21, 31), temporal_padding="replicate"),
    Case(1, 3, 24, (4, 40, 130), stride=(2, 2, 2), temporal_padding="causal"),
    Case(1, 1, 33, (3, 9, 17), stride=(1, 1, 1), layout="contiguous"),
    Case(2, 4, 64, (2, 12, 12), (1, 4, 4), (1, 4, 4), (0, 0, 0)),
    Case(1, 3, 5, (1, 30, 41), (3, 7, 7), (1, 2, 2), (1, 3, 3), "replicate", bias=False),
    Case(3, 7, 17, (3, 6, 30), (2, 3, 5), (1, 1, 3), (0, 2, 1), layout="channels_last_slice"),
]


def _results(case: Case, dtype: torch.dtype, backend: str) -> list[Tensor]:
    """Output and gradients, computed in `dtype` from values that the case's dtype can hold."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in case.tensors()]
    output = case.call(leaves, backend)
    torch.manual_seed(1)
    grad = torch.randn(output.shape, dtype=torch.float64).to(case.dtype).to(dtype)
    grads = list(torch.autograd.grad(output, leaves, grad))
    grads[1] = grads[1].flatten(1)
    return [output.detach(), *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_error_is_that_of_pytorch(case: Case, dtype: torch.dtype, instruction_set: str) -> None:
    case = replace(case, dtype=dtype)
    ours, theirs = (_results(case, dtype, backend) for backend in ("native", "reference"))
    exact = _results(case, torch.float64, "reference")
    for name, *values in zip(("output", "input", "weight", "bias"), ours, theirs, exact):  # noqa: B905
        assert_accurate(*values, FORWARD if name == "output" else BACKWARD, name)


@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_float64_equals_pytorch(case: Case, instruction_set: str) -> None:
    case = replace(case, dtype=torch.float64)
    both = (_results(case, torch.float64, backend) for backend in ("native", "reference"))
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_activation_equals_pytorchs(activation: str | None, instruction_set: str) -> None:
    # Without gradients it is fused into the store, with them it is recorded apart.
    case = Case(1, 3, 21, (3, 9, 33), activation=activation)
    with torch.no_grad():
        fused = case.call(case.tensors())
    apart = case.call([x.requires_grad_() for x in case.tensors()])
    exact = case.call([x.double() for x in case.tensors()], "reference").float()
    torch.testing.assert_close(fused, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(apart, exact, rtol=1e-5, atol=1e-5)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any call that has an output."""

    def triple(low: int, high: int) -> Triple:
        number = st.integers(low, high)
        return draw(number), draw(number), draw(number)

    case = Case(
        draw(st.integers(0, 2)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 40)),
        (draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 40))),
        triple(1, 4),
        triple(1, 3),
        triple(0, 2),
        draw(st.sampled_from(TEMPORAL_PADDINGS)),
        draw(st.sampled_from(ACTIVATIONS)),
        draw(st.booleans()),
        draw(st.sampled_from(LAYOUTS)),
    )
    return case if case.fits else replace(case, kernel=(1, 1, 1))


@given(case=cases())
@example(case=Case(0, 3, 16, (3, 8, 8), temporal_padding="replicate"))
@example(case=Case(1, 1, 1, (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), layout="contiguous"))
@example(case=Case(1, 3, 8, (1, 5, 5), (4, 3, 3), (1, 1, 1), (2, 1, 1), "causal"))
def test_any_call_equals_pytorch(case: Case) -> None:
    both = [_results(case, torch.float32, backend) for backend in ("native", "reference")]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-3)


def test_output_and_gradient_keep_the_memory_format() -> None:
    for layout, memory_format in (
        ("contiguous", torch.contiguous_format),
        ("channels_last", torch.channels_last_3d),
    ):
        output, grad, *_ = _results(replace(CASES[0], layout=layout), torch.float32, "native")
        assert output.is_contiguous(memory_format=memory_format)
        assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_any_number_of_threads_gives_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    case, results = replace(case, dtype=dtype), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        # The gradient of the input is PyTorch's own and promises nothing.
        output, _, *grads = _results(case, dtype, "native")
        results.append([output, *grads])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_hundred_repeats_give_the_same_bits() -> None:
    torch.set_num_threads(2)
    first = _results(CASES[0], torch.float32, "native")
    for _ in range(100):
        again = _results(CASES[0], torch.float32, "native")
        assert all(torch.equal(first[i], again[i]) for i in (0, 2, 3))


@pytest.mark.parametrize("temporal_padding", TEMPORAL_PADDINGS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
def test_gradcheck(layout: str, temporal_padding: str) -> None:
    case = Case(2, 2, 3, (3, 4, 5), temporal_padding=temporal_padding, activation="silu")
    case = replace(case, layout=layout, dtype=torch.float64)
    leaves = tuple(x.requires_grad_() for x in case.tensors())
    assert torch.autograd.gradcheck(lambda *x: case.call(list(x)), leaves)


def test_no_gradient_that_nobody_asked_for() -> None:
    case = CASES[0]
    for index in range(3):
        leaves = case.tensors()
        leaves[index].requires_grad_()
        output = case.call(leaves)
        needed = [i == index for i in range(3)]
        window = ((1, 2, 2), (1, 1, 1), (1, 1, 1), "replicate")
        grads = BACKWARD_OP(torch.ones_like(output), *leaves[:2], *window, "native", needed)
        assert [g.numel() > 0 for g in grads] == needed
        (grad,) = torch.autograd.grad(output.sum(), [leaves[index]])
        assert torch.equal(grad, grads[index])


def test_a_second_derivative_is_refused() -> None:
    leaves = [x.requires_grad_() for x in CASES[0].tensors()]
    (grad,) = torch.autograd.grad(
        CASES[0].call(leaves).square().sum(), leaves[1], create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"dense_conv3d: a second derivative .*reference"):
        torch.autograd.grad(grad.sum(), leaves[1])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("temporal_padding", TEMPORAL_PADDINGS)
def test_opcheck(temporal_padding: str, layout: str) -> None:
    x, weight, bias = replace(CASES[0], layout=layout, size=(3, 6, 7)).tensors()
    window = ((1, 2, 2), (1, 1, 1), (1, 1, 1), temporal_padding)
    torch.library.opcheck(FORWARD_OP, (x, weight, bias, *window, "gelu", "native"))
    torch.library.opcheck(FORWARD_OP, (x, weight, None, *window, "none", "native"))
    grad = torch.randn_like(FORWARD_OP(x, weight, bias, *window, "none", "native"))
    for needed in ([True, True, True], [False, True, True], [True, False, False]):
        torch.library.opcheck(BACKWARD_OP, (grad, x, weight, *window, "native", needed))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph_forward_and_backward(dynamic: bool) -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = dense_conv3d(
            x * 1.5, weight, bias, 2, 1, temporal_padding="causal", activation="hardswish"
        )
        return y.sin()

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for f in (compiled, function):
        leaves = [x.requires_grad_() for x in CASES[0].tensors()]
        output = f(*leaves)
        results.append((output.detach(), *torch.autograd.grad(output.sum(), leaves)))
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
        assert ours.stride() == eager.stride()


def test_exports_and_runs_for_other_sizes() -> None:
    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(16, 3, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return dense_conv3d(x, self.weight, None, (1, 2, 2), 1, activation="relu")

    module = First().eval()
    time = torch.export.Dim("time", min=2, max=64)
    program = torch.export.export(
        module, (torch.randn(1, 3, 4, 8, 8),), dynamic_shapes={"x": {2: time}}
    )
    x = torch.randn(1, 3, 9, 8, 8)
    torch.testing.assert_close(program.module()(x), module(x))


def test_autocast_as_pytorchs_convolution() -> None:
    x, weight, bias = CASES[0].tensors()
    with torch.autocast("cpu", torch.bfloat16):
        output = dense_conv3d(x, weight, bias, (1, 2, 2), 1)
        theirs = F.conv3d(x, weight, bias, (1, 2, 2), 1)
    assert output.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(output, theirs, rtol=2e-2, atol=5e-2)


X, W, B = torch.zeros(1, 3, 4, 6, 6), torch.zeros(8, 3, 3, 3, 3), torch.zeros(8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("x", W), {}, TypeError, "input must be a Tensor"),
        ((X[0], W), {}, ValueError, "input must have 5 dimensions"),
        ((X, W[0]), {}, ValueError, "weight must have 5 dimensions"),
        ((X.int(), W), {}, TypeError, "input must be float32"),
        ((X, W.double()), {}, TypeError, "weight is torch.float64, input is torch.float32"),
        ((X, W[:, :2]), {}, ValueError, "weight takes 2 channels, input has 3"),
        ((X[:, :, :0], W), {}, ValueError, "input has zero T"),
        ((X, W, B[:5]), {}, ValueError, "bias has 5 channels, weight has 8"),
        ((X, W, B, 0), {}, ValueError, "stride must be at least 1"),
        ((X, W, B, 1, (1, 1)), {}, ValueError, "padding must have 1 or 3 values"),
        ((X[:, :, :1], W), {}, ValueError, "is larger than the padded input"),
        ((X, W), {"temporal_padding": "same"}, ValueError, "temporal_padding must be one of"),
        ((X, W), {"activation": "tanh"}, ValueError, "activation must be None or one of"),
        ((X, W), {"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"dense_conv3d: .*{words}"):
        dense_conv3d(*arguments, **options)


@pytest.mark.parametrize("stride", [True, (True, 1, 1), (1.0, 1, 1)])
def test_a_call_that_was_accepted_vouches_for_no_other_types(stride: Any) -> None:
    for accepted in (1, (1, 1, 1)):
        dense_conv3d(X, W, B, accepted)
    with pytest.raises(TypeError, match="dense_conv3d: stride must hold ints"):
        dense_conv3d(X, W, B, stride)
