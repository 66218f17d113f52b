"""Dense tensors of more than 2^31 elements, on a GPU; on a CPU the same with a smaller limit.

(Views that reach as far are tried on the CPU too: test_offsets_beyond_31_bits.)
"""

from __future__ import annotations

import gpu
import pytest
import torch
from device_calls import LAST
from placement import Placement, placements
from torch import Tensor

from evit_kernels import depthwise_conv3d, relu_linear_attention_qkv

LIMIT = {"cpu": 2**16, "cuda": 2**31}
DTYPE = torch.bfloat16


def _places(operator: str) -> list[Placement]:
    return [Placement("cpu", "native"), *placements(operator)]


def _filled(shape: tuple[int, ...], place: Placement, tensors: float) -> Tensor:
    """Noise of more elements than the limit; skips where there is no room for `tensors` of it."""
    x = torch.Size(shape)
    assert x.numel() > LIMIT[place.device]
    free = gpu.free_bytes(place.device)
    needed = tensors * x.numel() * DTYPE.itemsize
    if free is not None and needed > free:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free on the GPU")
    large = torch.empty(shape, dtype=DTYPE, device=place.device, memory_format=LAST)
    for sample in large:
        sample.normal_()
    return large


@pytest.mark.parametrize("planar", [False, True], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("place", _places("depthwise_conv3d"), ids=str)
def test_depthwise_of_many_samples(place: Placement, planar: bool) -> None:
    sample = (64, 16, 112, 112) if gpu.is_gpu(place.device) else (8, 3, 12, 12)
    batch = LIMIT[place.device] // torch.Size(sample).numel() + 2
    x = _filled((batch, *sample), place, 6)
    if planar:
        x = x.contiguous()
    weight = torch.randn(sample[0], 1, 3, 3, 3).to(place.device, DTYPE)
    x.requires_grad_()
    weight.requires_grad_()

    def call(x: Tensor) -> tuple[Tensor, ...]:
        y = depthwise_conv3d(x, weight, padding=1, backend=place.backend)
        return (y.detach(), *torch.autograd.grad(y, [x, weight], torch.ones_like(y)))

    y, grad, grad_weight = call(x)
    # Batches are independent, so the first and the last sample are as they would be alone.
    for number in (0, batch // 2, batch - 1):
        alone = call(x[number : number + 1].detach().requires_grad_())
        assert torch.equal(y[number], alone[0][0])
        assert torch.equal(grad[number], alone[1][0])
    # Weight gradients add up over samples.
    parts = [call(x[n : n + 16].detach().requires_grad_())[2] for n in range(0, batch, 16)]
    total = torch.stack([p.double() for p in parts]).sum(0)
    error = (grad_weight.double() - total).norm() / total.norm()
    assert error < 0.02


@pytest.mark.parametrize("place", _places("depthwise_conv3d"), ids=str)
def test_depthwise_of_one_sample(place: Placement) -> None:
    size = (64, 48, 840, 840) if gpu.is_gpu(place.device) else (8, 40, 16, 16)
    x = _filled((1, *size), place, 3)
    weight = torch.randn(size[0], 1, 3, 3, 3).to(place.device, DTYPE)
    with torch.inference_mode():
        whole = depthwise_conv3d(x, weight, padding=1, backend=place.backend)
        last = depthwise_conv3d(
            x[:, :, -4:].contiguous(memory_format=LAST), weight, padding=1, backend=place.backend
        )
    torch.testing.assert_close(whole[:, :, -3:], last[:, :, -3:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("place", _places("relu_linear_attention"), ids=str)
def test_attention_of_many_samples(place: Placement) -> None:
    sample = (96, 16, 56, 56) if gpu.is_gpu(place.device) else (96, 2, 6, 6)
    batch = LIMIT[place.device] // torch.Size(sample).numel() + 2
    x = _filled((batch, *sample), place, 4).requires_grad_()

    def call(x: Tensor) -> tuple[Tensor, ...]:
        y = relu_linear_attention_qkv(x, 16, backend=place.backend)
        return (y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y)))

    y, grad = call(x)
    for number in (0, batch // 2, batch - 1):
        alone = call(x[number : number + 1].detach().requires_grad_())
        assert torch.equal(y[number], alone[0][0])
        assert torch.equal(grad[number], alone[1][0])
