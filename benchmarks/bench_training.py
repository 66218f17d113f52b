"""Training: a step of b0 and b2 (b1 is in bench_models.py), the whole loop, and reading videos.

The loop trains b1 on mp4 files that `evit prepare` made, and on clips that cost nothing: what is
lost between the two is lost by reading. Counted are its steps, from the start of the loader's
processes on; building the model and saving it are not.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_models import GRADIENT_TOLERANCE
from exact import check
from networks import layout_of, peer_network, plain_network, random_clip, training_call
from rounds import OURS, PYTORCH, Group, measure, recorded
from shapes import CLIP
from torch import Tensor

from evit_models.training import Trainer, load_config
from evit_models.training.datasets import make_datasets
from evit_models.training.logging import read_log
from evit_models.video import VideoReader, write_video
from evit_models.video.preparing import Recipe, loading_speed, prepare_videos

FILES, FRAMES, FILMED = 32, 150, (256, 340)  # six seconds of 25 frames
SIZE, SHORT_SIDE, WORKERS, BATCH, EPOCHS = 112, 128, 2, 8, 4
DUMMY, FILMED_PEER, PREPARED_PEER = "DummyClips", "as filmed", "prepared"


@pytest.fixture(scope="module", params=["b0", "b2"])
def step(request: pytest.FixtureRequest, rounds: int) -> Group:
    """Forward, cross-entropy, backward of one clip."""
    name = f"efficientvit3d_{request.param}"
    plain, clip = plain_network(name), random_clip()
    case = f"{name} {'x'.join(map(str, CLIP))}"
    calls = {
        peer: training_call(
            peer_network(peer, plain, name), clip.contiguous(memory_format=layout_of(peer))
        )
        for peer in (OURS, *PYTORCH)
    }
    exact = _one_vector(training_call(copy.deepcopy(plain).double(), clip.double()))
    vectors = {peer: partial(_one_vector, call) for peer, call in calls.items()}
    check(vectors, exact, GRADIENT_TOLERANCE, f"{case} training")
    return measure(f"{request.param} training step", case, calls, rounds)


@pytest.fixture(scope="module")
def videos(quick: bool) -> Iterator[tuple[list[str], list[str], Path]]:
    """Paths of mp4 files as filmed, of the prepared ones, and the list of the latter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"{number}.mp4") for number in range(BATCH if quick else FILES)]
        for number, path in enumerate(paths):
            write_video(path, _film(number, 20 if quick else FRAMES), 25)
        labels = [number % 4 for number in range(len(paths))]
        done = prepare_videos(paths, labels, folder / "out", recipe=Recipe(SHORT_SIDE))
        yield paths, [target for _, target in done.pairs], done.list_file


@pytest.fixture(scope="module")
def loop(videos: tuple[list[str], list[str], Path], rounds: int, quick: bool) -> Group:
    """Seconds of all steps of a training, on files and on noise, by turns."""
    paths, _, listing = videos
    common = {
        "model": "efficientvit3d_b1",
        "frames": 16,
        "size": SIZE,
        "batch_size": BATCH,
        "workers": WORKERS,
        "epochs": 1 if quick else EPOCHS,
    }
    kinds: dict[str, dict[str, Any]] = {
        OURS: {"dataset": "list", "data": str(listing)},
        DUMMY: {"dataset": "dummy", "motion_clips": len(paths)},
    }
    seconds: dict[str, list[float]] = {peer: [] for peer in kinds}
    for _ in range(min(rounds, 5)):
        for peer, data in kinds.items():
            seconds[peer].append(_steps({**common, **data}))
    clips = len(paths) // BATCH * BATCH * (1 if quick else EPOCHS)
    extra = {peer: {"clips": clips, "workers": WORKERS} for peer in kinds}
    return Group("training loop", f"b1 16x{SIZE}x{SIZE}, {BATCH} a batch", seconds, extra=extra)


@pytest.fixture(scope="module")
def reading(videos: tuple[list[str], list[str], Path], rounds: int) -> Group:
    """Seconds of one core per clip of 16 frames, spread over its video and made small."""
    paths = dict(zip((FILMED_PEER, PREPARED_PEER), videos[:2], strict=True))
    calls: dict[str, Callable[[], object]] = {
        peer: partial(loading_speed, of[:BATCH], short_side=SHORT_SIDE)
        for peer, of in paths.items()
    }
    group = _on_one_thread(lambda: measure("reading clips", "16 frames", calls, rounds))
    seconds = {peer: [value / BATCH for value in all_] for peer, all_ in group.seconds.items()}
    return Group(group.row, group.case, seconds)


@pytest.fixture(scope="module")
def decoding(videos: tuple[list[str], list[str], Path], rounds: int) -> Group:
    """Seconds of one core for all frames of a video, decoded and turned into RGB."""
    paths = dict(zip((FILMED_PEER, PREPARED_PEER), videos[:2], strict=True))
    calls = {peer: partial(_decode, of[0]) for peer, of in paths.items()}
    frames = _decode(paths[FILMED_PEER][0])
    group = measure("decoding", f"{frames} frames", calls, rounds)
    sizes = {peer: {"frames": frames, "video": _size(of[0])} for peer, of in paths.items()}
    return Group(group.row, group.case, group.seconds, extra=sizes)


@recorded
@pytest.mark.parametrize("peer", [OURS, *PYTORCH])
def bench_step(benchmark: Any, step: Group, peer: str) -> None:
    step.report(benchmark, peer)


@recorded
@pytest.mark.parametrize("peer", [OURS, DUMMY])
def bench_loop(benchmark: Any, loop: Group, peer: str) -> None:
    loop.report(benchmark, peer)


@recorded
@pytest.mark.parametrize("peer", [FILMED_PEER, PREPARED_PEER])
def bench_reading(benchmark: Any, reading: Group, peer: str) -> None:
    reading.report(benchmark, peer)


@recorded
@pytest.mark.parametrize("peer", [FILMED_PEER, PREPARED_PEER])
def bench_decoding(benchmark: Any, decoding: Group, peer: str) -> None:
    decoding.report(benchmark, peer)


def _one_vector(step: Callable[[], list[Tensor]]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in step()])


def _steps(overrides: dict[str, Any]) -> float:
    config = load_config(overrides=overrides)
    with tempfile.TemporaryDirectory() as name:
        Trainer(config, Path(name), make_datasets(config)[0]).run()
        steps = [row for row in read_log(Path(name)) if row["kind"] == "step"]
    return float(sum(row["clips"] / row["clips_per_second"] for row in steps))


def _film(number: int, frames: int) -> Iterator[np.ndarray[Any, Any]]:
    """A camera that moves over a scene of smooth shapes, with the grain of a sensor."""
    rng = np.random.default_rng(number)
    height, width = FILMED
    coarse = torch.from_numpy(rng.random((1, 3, 24, 40), dtype=np.float32))
    big = torch.nn.functional.interpolate(coarse, (height + 128, width + 192), mode="bicubic")
    scene = (255 * big[0].clamp(0, 1)).permute(1, 2, 0).numpy()
    for frame in range(frames):
        y, x = frame * 127 // frames, frame * 191 // frames
        grain = rng.normal(0, 3, (height, width, 1)).astype(np.float32)
        yield (scene[y : y + height, x : x + width] + grain).clip(0, 255).astype(np.uint8)


def _decode(path: str) -> int:
    with VideoReader(path, threads=1) as reader:
        return sum(1 for _ in reader)


def _size(path: str) -> str:
    with VideoReader(path) as reader:
        return f"{reader.info.width}x{reader.info.height}"


def _on_one_thread(call: Callable[[], Group]) -> Group:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(threads)
