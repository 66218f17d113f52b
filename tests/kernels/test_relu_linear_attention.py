"""ReLU linear attention against float64: accuracy, layouts, special values, derivatives, torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accuracy import BACKWARD, FORWARD, assert_accurate
from placement import randn
from torch import Tensor

from evit_kernels import relu_linear_attention, relu_linear_attention_qkv

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def results(call: Callable[..., Tensor], inputs: list[Tensor], seed: int = 5) -> list[Tensor]:
    """The output, then the gradient of every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = call(*leaves)
    noise = randn(*output.shape, seed=seed).to(output)
    return [output, *torch.autograd.grad(output, leaves, noise)]


def attend(head_dim: int, backend: str) -> Callable[..., Tensor]:
    """The packed form over any number of tensors."""

    def call(*qkv: Tensor) -> Tensor:
        return relu_linear_attention_qkv(list(qkv), head_dim, backend=backend)

    return call


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("head_dim", "heads", "size"),
    [
        (16, 2, (8, 28, 28)),
        (32, 1, (12, 32, 32)),
        (16, 1, (16, 56, 56)),
        (8, 3, (2, 5, 7)),
        (5, 2, (1, 3, 3)),
    ],
)
def test_accuracy(
    dtype: torch.dtype,
    head_dim: int,
    heads: int,
    size: tuple[int, int, int],
    instruction_set: str,
) -> None:
    inputs = [torch.randn(1, heads * 3 * head_dim, *size).to(dtype) for _ in range(2)]
    inputs = [x.contiguous(memory_format=torch.channels_last_3d) for x in inputs]
    ours = results(attend(head_dim, "native"), inputs)
    theirs = results(attend(head_dim, "reference"), inputs)
    exact = results(attend(head_dim, "reference"), [x.double() for x in inputs])
    for i, values in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_accurate(*values, BACKWARD if i else FORWARD, f"result {i}")
    assert (ours[0].abs().amax(dim=1) > 0).all(), "a token collapsed to zero"


def test_every_instruction_set(instruction_set: str) -> None:
    inputs = [torch.randn(2, 3 * 16, 3, 6, 5), torch.randn(2, 2 * 3 * 16, 3, 6, 5)]
    ours = results(attend(16, "native"), inputs)
    exact = results(attend(16, "reference"), inputs)
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_sources_are_attended_as_if_concatenated_in_any_layout(instruction_set: str) -> None:
    last = torch.channels_last_3d
    sources = [torch.randn(2, 96, 2, 9, 17).contiguous(memory_format=last)]
    sources.append(torch.randn(2, 48, 2, 9, 17))
    ours = results(attend(16, "native"), sources)
    whole = torch.cat(sources, dim=1).double()
    exact = results(attend(16, "reference"), [whole])
    exact[1:] = exact[1].split([96, 48], dim=1)
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5)
    assert ours[0].is_contiguous(memory_format=last)
    assert [x.stride() for x in ours[1:]] == [x.stride() for x in sources]


@pytest.mark.parametrize("head_dim", [1, 3, 8, 16, 32, 64])
def test_separate_form_with_views(head_dim: int, instruction_set: str) -> None:
    whole = torch.randn(2, 3, 41, 2 * head_dim)
    q = whole[..., :head_dim]
    k = torch.randn(2, 41, 3, head_dim).transpose(1, 2)
    v = torch.randn(1, 3, 41, head_dim).expand(2, -1, -1, -1)
    ours = results(lambda *x: relu_linear_attention(*x, backend="native"), [q, k, v])
    exact = results(lambda *x: relu_linear_attention(*x, backend="reference"), [q, k, v])
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_output_keeps_the_memory_format(instruction_set: str) -> None:
    x = torch.randn(2, 48, 2, 3, 4)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert relu_linear_attention_qkv(x, 16, backend="native").is_contiguous()
    output = relu_linear_attention_qkv(last, 16, backend="native")
    assert output.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(output, relu_linear_attention_qkv(x, 16, backend="native"))


def test_a_query_without_positive_entry_yields_zero(instruction_set: str) -> None:
    q, k, v = (torch.randn(1, 2, 9, 16) for _ in range(3))
    q[:, :, 4] = -q[:, :, 4].abs()
    for eps in (1e-15, 0.0):
        output, grad_q, *_ = results(
            lambda *x, eps=eps: relu_linear_attention(*x, eps=eps, backend="native"), [q, k, v]
        )
        assert (output[:, :, 4] == 0).all()
        assert (grad_q[:, :, 4] == 0).all()
        assert output.isfinite().all()


@pytest.mark.on_cpu("GPUs take no longer for numbers that are not normal: nothing is lifted there")
@pytest.mark.parametrize(
    ("queries", "keys", "values"),
    [(1e-12, 1e-12, 1e-12), (1e-14, 1e-14, 1e-14), (1e-16, 1e-16, 1e-16), (1e15, 1.0, 1e-25)],
)
@pytest.mark.parametrize("head_dim", [16, 5])
def test_tiny_activations_keep_their_precision(
    queries: float, keys: float, values: float, head_dim: int, instruction_set: str
) -> None:
    # As in networks of random weights, whose products would leave the range of normal numbers.
    x = torch.randn(2, 2, 3, head_dim, 4, 6, 7)  # heads, then queries, keys and values
    x[:, 0] *= torch.tensor([queries, keys, values]).view(3, 1, 1, 1, 1)
    x = x.flatten(1, 3)
    ours = attend(head_dim, "native")(x).double().unflatten(1, (2, head_dim))
    exact = attend(head_dim, "reference")(x.double()).unflatten(1, (2, head_dim))
    for head in range(2):
        largest = exact[:, head].abs().max()
        assert largest > 0
        torch.testing.assert_close(
            ours[:, head] / largest, exact[:, head] / largest, rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_special_values_come_out_as_in_pytorch(
    special: float, which: int, instruction_set: str
) -> None:
    inputs = [torch.randn(1, 2, 12, 16) for _ in range(3)]
    inputs[which][0, 1, 3, 2] = special
    ours = relu_linear_attention(*inputs, backend="native")
    theirs = relu_linear_attention(*inputs, backend="reference")
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_repeated_tokens_leave_the_output_unchanged() -> None:
    q, k, v = (torch.randn(1, 2, 10, 16) for _ in range(3))
    once = relu_linear_attention(q, k, v, backend="native")
    often = relu_linear_attention(
        *(x.repeat_interleave(7, dim=2) for x in (q, k, v)), backend="native"
    )
    torch.testing.assert_close(often[:, :, ::7], once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [(2, 96, 20, 20, 20), (2, 192, 4, 7, 7), (1, 384, 4, 14, 14)],
    ids=["by tokens", "by heads", "by heads where two caches hold what one does not"],
)
def test_same_bits_on_any_number_of_threads_and_again(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = results(attend(16, "native"), [x])
        torch.set_num_threads(2)
        for _ in range(20):
            double = results(attend(16, "native"), [x])
            assert all(torch.equal(a, b) for a, b in zip(single, double, strict=True))
    finally:
        torch.set_num_threads(before)


def test_gradcheck(instruction_set: str) -> None:
    x, y = (torch.randn(1, 12, 2, 2, 2, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(attend(4, "native"), (x, y))


def test_second_derivative_is_refused() -> None:
    x = torch.randn(1, 12, 2, 2, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(attend(4, "native")(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


def test_compiled_forward_and_backward_also_with_one_tensor_twice() -> None:
    x = torch.randn(1, 48, 2, 4, 4)
    compiled = torch.compile(lambda a: attend(16, "native")(a, a), fullgraph=True)
    for got, wanted in zip(
        results(compiled, [x]), results(lambda a: attend(16, "native")(a, a), [x]), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_empty_batch() -> None:
    assert attend(16, "native")(torch.randn(0, 48, 2, 3, 3)).shape == (0, 16, 2, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: relu_linear_attention_qkv([], 16), ValueError, "empty"),
        (lambda: relu_linear_attention_qkv(torch.randn(1, 40, 2, 2, 2), 16), ValueError, "48"),
        (lambda: relu_linear_attention_qkv(torch.randn(1, 48, 2, 2), 16), ValueError, "5 dim"),
        (lambda: relu_linear_attention_qkv(torch.randn(1, 48, 2, 2, 2), 0), ValueError, "head_dim"),
        (lambda: relu_linear_attention_qkv(torch.ones(1, 48, 2, 2, 2).int(), 16), TypeError, "int"),
        (lambda: relu_linear_attention_qkv("x", 16), TypeError, "qkv"),
    ],
)
def test_bad_input(call: Callable[[], Tensor], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
