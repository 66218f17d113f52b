"""Inflation: the weights of a 2-D convolution as the weights of a 3-D one.

With repeated frames as temporal padding, both ways make a network give for a still clip exactly
what the 2-D network gives for its image. With zeros as padding only "center" does.
"""

from __future__ import annotations

from torch import Tensor

INFLATIONS = ("center", "mean")


def inflate_weight(
    weight: Tensor, temporal_kernel: int, inflation: str, *, causal: bool = False
) -> Tensor:
    """Returns a (C_out, C_in, k_t, k_h, k_w) weight that acts on still clips as the 2-D one does.

    Args:
        weight: (C_out, C_in, k_h, k_w), or the same with a temporal size of 1.
        temporal_kernel: k_t, odd.
        inflation: "center", the 2-D weight at one frame and zeros at the others (ViViT,
            arXiv 2103.15691); "mean", the 2-D weight divided by k_t at every frame (I3D,
            arXiv 1705.07750).
        causal: with causal padding the last slice, not the middle one, sees the frame of the
            output, and "center" fills that one.
    """
    check_inflation(inflation)
    frame = weight.unsqueeze(2) if weight.dim() == 4 else weight
    if inflation == "mean":
        return (frame / temporal_kernel).repeat(1, 1, temporal_kernel, 1, 1)
    inflated = frame.new_zeros(*frame.shape[:2], temporal_kernel, *frame.shape[3:])
    present = temporal_kernel - 1 if causal else temporal_kernel // 2
    inflated[:, :, present] = frame[:, :, 0]
    return inflated


def check_inflation(inflation: str) -> None:
    """Raises ValueError unless the name of an inflation exists."""
    if inflation not in INFLATIONS:
        known = ", ".join(map(repr, INFLATIONS))
        raise ValueError(f"inflation must be one of {known}, got {inflation!r}")
