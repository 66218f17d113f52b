"""The definition of ReLU linear attention, in plain PyTorch: any dtype, device, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def relu_linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """Attends over (B, heads, N, d) tokens: relu(q) (relu(k)^T v) / (relu(q) . sum relu(k) + eps).

    Sums are float32 for 16-bit inputs: in half precision the normaliser overflows silently from a
    few thousand tokens on. Where the normaliser is 0 the output, and every gradient, is 0.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    query, key, value = q.to(wide).relu(), k.to(wide).relu(), v.to(wide)
    state = key.transpose(-1, -2) @ value
    normaliser = query @ key.sum(dim=-2).unsqueeze(-1) + eps
    empty = normaliser == 0
    # Divided by 1 first, then replaced: a 0/0 under the mask would still poison the gradient.
    output = (query @ state) / normaliser.masked_fill(empty, 1.0)
    return output.masked_fill(empty, 0.0).to(q.dtype)


def relu_linear_attention_qkv(qkv: Sequence[Tensor], head_dim: int, eps: float) -> Tensor:
    """Attends over packed heads: channels are (heads, [q, k, v], d), tokens are T * H * W."""
    packed = torch.cat(list(qkv), dim=1)
    batch, channels, *space = packed.shape
    heads = channels // (3 * head_dim)
    tokens = packed.reshape(batch, heads, 3, head_dim, -1).transpose(-1, -2)
    output = relu_linear_attention(tokens[:, :, 0], tokens[:, :, 1], tokens[:, :, 2], eps)
    return output.transpose(-1, -2).reshape(batch, heads * head_dim, *space)
