"""Linear attention with ReLU feature maps, over tokens of space and time.

Read in this order: this file (meaning), reference.py (definition), op.py (registration with torch),
native.py (the compiled core), triton.py (Triton kernels).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evit_kernels import _calls, _checks, backends
from evit_kernels.relu_linear_attention import op, reference
from evit_kernels.relu_linear_attention.op import NAME

_SEPARATE = _calls.Calls()
_PACKED = _calls.Calls()


def relu_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, eps: float = 1e-15, backend: str | None = None
) -> Tensor:
    """Attends with ReLU feature maps, in time and memory linear in the number of tokens.

    Equivalent to:

        q, k = F.relu(q.float()), F.relu(k.float())
        (q @ (k.mT @ v.float()) / (q @ k.sum(-2, keepdim=True).mT + eps)).to(v.dtype)

    Args:
        q, k, v: (B, heads, N, d), one dtype (float32, float16, bfloat16 or float64), any strides.
        eps: added to the normaliser; 1e-15 in the original EfficientViT, 1e-5 in timm's.
        backend: None for the automatic choice, or "reference", "native", "triton".

    Returns:
        (B, heads, N, d) in the dtype of the inputs; sums are float32 (float64 for float64). A token
        whose q has no positive entry yields exactly 0.

    Raises:
        ValueError: wrong rank or sizes. TypeError: wrong types or mixed dtypes.
        RuntimeError: mixed devices, a backend that cannot serve, a second derivative.

    Source: EfficientViT (arXiv 2205.14756), equations 2 to 4; Katharopoulos et al. (arXiv
    2006.16236).
    """
    key, known = _SEPARATE.find((q, k, v), (), backend)
    if known is None:
        _check(q, k, v)
        chosen = backends.select(NAME, backend, q, q.shape[-1])
        known = _SEPARATE.keep(key, _calls.Known(chosen, None))
    if known.backend == "reference":
        return reference.relu_linear_attention(q, k, v, eps)
    return op.relu_linear_attention(q, k, v, eps, known.backend)


def relu_linear_attention_qkv(
    qkv: Tensor | Sequence[Tensor],
    head_dim: int,
    *,
    eps: float = 1e-15,
    backend: str | None = None,
) -> Tensor:
    """Attends over packed projections of a clip, as EfficientViT's multi-scale attention does.

    Equivalent to splitting the channels into (heads, [q, k, v], head_dim), the positions into
    N = T * H * W tokens, calling `relu_linear_attention` and folding the result back.

    Args:
        qkv: (B, heads * 3 * head_dim, T, H, W), or a sequence of such tensors (the scales),
            attended as if concatenated along the channels, without being concatenated.
        head_dim: the width d of a head.
        eps: added to the normaliser.
        backend: None for the automatic choice, or "reference", "native", "triton".

    Returns:
        (B, heads * head_dim, T, H, W), heads counted over all tensors in their order, in the dtype
        and memory format of the first.

    Raises:
        ValueError: wrong rank or sizes. TypeError: wrong types or mixed dtypes.
        RuntimeError: mixed devices, a backend that cannot serve, a second derivative.
    """
    tensors = [qkv] if isinstance(qkv, Tensor) else list(qkv) if isinstance(qkv, Sequence) else []
    found = _PACKED.call(tensors, (head_dim, eps), backend)
    if isinstance(found, Tensor):
        return found
    key, known = found
    if known is None:
        _check_packed(qkv, head_dim)
        chosen = backends.select(NAME, backend, tensors[0], head_dim)
        direct = key and _calls.direct(op.BACKENDS, chosen, tensors, head_dim, eps)
        known = _PACKED.learn(key, tensors, chosen, None, direct)
    if known.backend == "reference":
        return reference.relu_linear_attention_qkv(tensors, head_dim, eps)
    return op.relu_linear_attention_qkv(tensors, head_dim, eps, known.backend, known.direct)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, value in (("q", q), ("k", k), ("v", v)):
        _checks.tensor(value, NAME, name)
        _checks.rank(value, 4, NAME, name, "(B, heads, N, d)")
        _checks.floating(value, NAME, name)
        _checks.same_kind(value, q, NAME, name, "q")
        if value.shape != q.shape:
            raise ValueError(
                f"{NAME}: {name} is {tuple(value.shape)}, q is {tuple(q.shape)}: they must be equal"
            )


def _check_packed(qkv: Tensor | Sequence[Tensor], head_dim: int) -> None:
    if not isinstance(qkv, Tensor) and not isinstance(qkv, Sequence):
        raise TypeError(
            f"{NAME}: qkv must be a Tensor or a sequence of them, got {type(qkv).__name__}"
        )
    tensors = [qkv] if isinstance(qkv, Tensor) else list(qkv)
    if not tensors:
        raise ValueError(f"{NAME}: qkv is an empty sequence")
    if isinstance(head_dim, bool) or not isinstance(head_dim, int):
        raise TypeError(f"{NAME}: head_dim must be an int, got {type(head_dim).__name__}")
    if head_dim < 1:
        raise ValueError(f"{NAME}: head_dim must be at least 1, got {head_dim}")
    for i, value in enumerate(tensors):
        name = "qkv" if isinstance(qkv, Tensor) else f"qkv[{i}]"
        _checks.tensor(value, NAME, name)
        _checks.rank(value, 5, NAME, name, "(B, heads * 3 * head_dim, T, H, W)")
        _checks.floating(value, NAME, name)
        _checks.same_kind(value, tensors[0], NAME, name, "qkv[0]")
        _checks.non_empty_space(value, NAME, name)
        if value.shape[1] % (3 * head_dim):
            raise ValueError(
                f"{NAME}: {name} has {value.shape[1]} channels, "
                f"not a multiple of 3 * head_dim = {3 * head_dim}"
            )
        if value.shape[0] != tensors[0].shape[0] or value.shape[2:] != tensors[0].shape[2:]:
            raise ValueError(
                f"{NAME}: {name} is {tuple(value.shape)}, qkv[0] is {tuple(tensors[0].shape)}: "
                "batch and (T, H, W) must be equal"
            )
