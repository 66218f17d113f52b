"""Properties of the frame numbers that make a clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evit_models.video import dense_indices, segment_indices, view_indices

totals = st.integers(1, 5000)
lengths = st.integers(1, 64)
strides = st.integers(1, 16)
seeds = st.integers(0, 2**32 - 1)


@given(totals, lengths, st.one_of(st.none(), seeds))
def test_segments_give_one_frame_each(total: int, frames: int, seed: int | None) -> None:
    generator = None if seed is None else np.random.default_rng(seed)
    picked = segment_indices(total, frames, generator=generator)
    assert picked.shape == (frames,)
    assert picked.dtype == np.int64
    assert ((picked >= 0) & (picked < total)).all()
    # Frame i comes from [i, i + 1) * total / frames, in exact arithmetic.
    for position, index in enumerate(picked.tolist()):
        assert position * total // frames <= index <= (position + 1) * total // frames


@given(totals, lengths)
def test_segment_centres_mirror_each_other(total: int, frames: int) -> None:
    picked = segment_indices(total, frames)
    centre = (picked + picked[::-1]) / 2
    assert np.abs(centre - (total - 1) / 2).max() <= 0.5


@given(totals, lengths, strides, st.one_of(st.none(), seeds))
def test_dense_clips_keep_their_stride_and_stay_inside(
    total: int, frames: int, stride: int, seed: int | None
) -> None:
    generator = None if seed is None else np.random.default_rng(seed)
    picked = dense_indices(total, frames, stride, generator=generator)
    assert picked.shape == (frames,)
    assert ((picked >= 0) & (picked < total)).all()
    steps = np.diff(picked)
    if total >= (frames - 1) * stride + 1:
        assert (steps == stride).all()
    else:
        # Too short: from the first frame on, and the last one repeats.
        assert picked[0] == 0
        assert np.array_equal(picked, np.minimum(stride * np.arange(frames), total - 1))


@given(totals, lengths, strides)
def test_a_clip_in_the_middle_leaves_as_much_before_as_after(
    total: int, frames: int, stride: int
) -> None:
    picked = dense_indices(total, frames, stride)
    if total >= (frames - 1) * stride + 1:
        assert abs(picked[0] - (total - 1 - picked[-1])) <= 1


@given(totals, lengths, st.integers(1, 10), st.one_of(st.none(), strides))
def test_views_differ_wherever_the_video_is_long_enough(
    total: int, frames: int, views: int, stride: int | None
) -> None:
    clips = view_indices(total, frames, views, stride)
    assert clips.shape == (views, frames)
    assert ((clips >= 0) & (clips < total)).all()
    assert (np.diff(clips, axis=1) >= 0).all()
    if stride is None:
        enough = total >= frames * views
    else:
        enough = total - ((frames - 1) * stride + 1) >= views - 1
    if enough:
        assert len({tuple(clip) for clip in clips.tolist()}) == views
        if stride is None:  # no two views share a single frame
            assert np.unique(clips).size == clips.size


@given(st.integers(2, 10), lengths, strides)
def test_dense_views_reach_both_ends(views: int, frames: int, stride: int) -> None:
    total = (frames - 1) * stride + views + 20
    clips = view_indices(total, frames, views, stride)
    assert clips[0, 0] == 0
    assert clips[-1, -1] == total - 1


@given(totals, lengths, strides, seeds)
def test_the_same_seed_draws_the_same_clip(total: int, frames: int, stride: int, seed: int) -> None:
    def draw() -> tuple[list[int], list[int]]:
        generator = np.random.default_rng(seed)
        return (
            dense_indices(total, frames, stride, generator=generator).tolist(),
            segment_indices(total, frames, generator=generator).tolist(),
        )

    assert draw() == draw()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: segment_indices(0, 4), "segment_indices: total is 0, expected 1 or more"),
        (lambda: segment_indices(9, 0), "segment_indices: frames is 0"),
        (lambda: segment_indices(9, 4, position=1.0), "position is 1.0"),
        (lambda: dense_indices(9, 4, 0), "dense_indices: stride is 0"),
        (lambda: dense_indices(9, 4, 1, start=-1), "start is -1"),
        (lambda: view_indices(9, 4, 0), "view_indices: views is 0"),
        (lambda: view_indices(9, 4, 2, 0), "stride is 0"),
    ],
)
def test_counts_must_be_positive(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
