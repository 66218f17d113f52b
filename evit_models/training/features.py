"""What a frozen backbone makes of every clip: computed once, kept on the disk, checked when read.

Features lie in a folder that is named by all that they depend on (the backbone's weights and
arguments, the frames that are taken, what is done to pixels, the precision), in a file per clip
that is named by its source (path, size, time of change, part of the video). So features that are
there and pass their checksum are right, and a run that was killed while it made them goes on.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from evit_models.efficientvit3d import EfficientViT3D
from evit_models.training.config import TrainConfig
from evit_models.training.distributed import Ranks
from evit_models.training.errors import TrainingError
from evit_models.training.evaluation import autocast
from evit_models.training.loading import loader, read
from evit_models.training.sampler import evaluation_shard
from evit_models.video.datasets import ClipDataset, Sample, TooManyBadVideos, VideoFiles
from evit_models.video.errors import VideoError

_DIGEST = 32  # bytes of SHA-256, which every file begins with
_REPLACEMENTS = 2  # a stream of random numbers that reading videos does not use
_NO_EFFECT = ("num_classes", "drop_path", "dropout", "head_norm_eps")


class HeadOnly(nn.Module):
    """A model that takes the features of `CachedFeatures` in place of clips."""

    def __init__(self, model: EfficientViT3D) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        """Returns the logits of features (B, C, T', H', W')."""
        return self.model.forward_head(features.contiguous(memory_format=torch.channels_last_3d))


class CachedFeatures(ClipDataset):
    """A dataset whose samples have the last stage's features as their "video".

    Their shape is (C, T', H', W') in training and (views, C, T', H', W') in evaluation, float32.
    `fill` comes before the first sample.

    Args:
        clips: videos of which nothing is drawn: those of evaluation, or of training with a
            `ClipTransform`.
        model: its backbone must not change any more.
        config: for the folder (`cache`) and the precision.
    """

    def __init__(self, clips: ClipDataset, model: EfficientViT3D, config: TrainConfig) -> None:
        assert isinstance(clips, VideoFiles)  # the configuration refuses all others
        super().__init__(training=clips.training, seed=clips.seed)
        self.clips = clips
        self.num_classes, self.class_names = clips.num_classes, clips.class_names
        self.labels = clips.labels
        self.folder = Path(config.cache) / _key_of(clips, model, config.precision)
        self._bad: set[int] = set()
        self._reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def fill(
        self,
        model: EfficientViT3D,
        config: TrainConfig,
        ranks: Ranks,
        *,
        warn: Callable[[str], object] = lambda text: None,
        observe: Callable[[str, dict[str, Any]], object] = lambda kind, facts: None,
    ) -> None:
        """Computes the features that are missing, each process those of its share of the clips.

        One clip at a time, so that no bit depends on which others were missing.

        Args:
            warn: is told of features that are corrupt and of videos that cannot be read.
            observe: is told of "features", how many of "total" missing ones are "done" by now.

        Raises:
            TrainingError: the folder cannot be written.
            TooManyBadVideos: none can be read, or in training more cannot than may be replaced.
        """
        missing, said = [], []
        for index in evaluation_shard(len(self), ranks.rank, ranks.world):
            reason = self._why_missing(index)
            if reason is not None:
                missing.append(index)
            if reason:
                said.append(f"features {self._path(index)} {reason}; they are computed again")
        for text in sorted(text for one in ranks.gather(said) for text in one):
            warn(text)
        found: dict[int, str] = {}
        training = model.training
        model.eval()
        batches = [[index] for index in missing]
        clips: Any = _Clips(self.clips)
        clips = loader(clips, batches, config, ranks.device.type)
        for done, batch in enumerate(read(clips, config), 1):
            index = int(batch["index"])
            if batch["error"][0]:
                found[index] = batch["error"][0]
            else:
                with torch.inference_mode(), autocast(config.precision, ranks.device):
                    features = model.forward_features(batch["video"][0].to(ranks.device))["stage4"]
                self._write(index, features.float().cpu().contiguous())
            observe("features", {"done": done, "total": len(missing)})
        model.train(training)
        self._reasons = {i: why for one in ranks.gather(found) for i, why in one.items()}
        self._bad = set(self._reasons)
        what = "another video stands for it" if self.training else "counted, not replaced"
        for index in sorted(self._bad):
            warn(f"{self.clips.segment(index).path}: {self._reasons[index]}; {what}")
        self.clips.mark_bad(sorted(self._bad))
        if len(self._bad) == len(self):
            raise TooManyBadVideos(f"none of {len(self)} videos can be read")

    def __getitem__(self, index: int) -> Sample:
        self._check_index(index)
        shown = index
        if index in self._bad and self.training:
            others = self._generator(index, _REPLACEMENTS)
            while shown in self._bad:
                shown = int(others.integers(len(self)))
        source = self.clips.segment(shown).path
        if shown in self._bad:
            some = next(i for i in range(len(self)) if i not in self._bad)
            video = torch.zeros_like(self._features(some))
        else:
            video = self._features(shown)
        return Sample(
            video=video[0] if self.training else video,
            label=self.label_of(shown),
            index=index,
            valid=shown not in self._bad,
            source=source,
            error="",
        )

    def _features(self, index: int) -> Tensor:
        reason = self._why_missing(index)
        if reason is not None:
            raise TrainingError(
                f"features {self._path(index)} {reason or 'are gone'} since the run began; the "
                "same command computes them again"
            )
        return torch.from_numpy(np.load(io.BytesIO(self._path(index).read_bytes()[_DIGEST:])))

    def _why_missing(self, index: int) -> str | None:
        """Returns None where features are whole, "" where there are none, else what is wrong."""
        try:
            content = self._path(index).read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        whole = hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]
        return None if whole else "are corrupt: their SHA-256 does not match"

    def _write(self, index: int, features: Tensor) -> None:
        path = self._path(index)
        buffer = io.BytesIO()
        np.save(buffer, features.numpy(), allow_pickle=False)
        content = buffer.getvalue()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not flushed to the disk: what a crash leaves half written fails its sum.
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise TrainingError(
                f"cannot write features to {path.parent}: {error.strerror}; those that are done "
                "are kept, the same command goes on from there"
            ) from error

    def _path(self, index: int) -> Path:
        segment = self.clips.segment(index)
        path = os.path.abspath(segment.path)
        try:
            status = os.stat(path)
            version = (status.st_size, status.st_mtime_ns)
        except OSError:
            version = (0, 0)  # reading it will say what is wrong
        facts = (path, version, segment.start, segment.stop, segment.chunk_seconds)
        name = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.features"


class _Clips(Dataset[dict[str, Any]]):
    """Clips to be turned into features, (views, 3, T, H, W), or why they cannot be read."""

    def __init__(self, clips: VideoFiles) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return {"index": index, "video": self.clips.views(index), "error": ""}
        except VideoError as error:
            return {"index": index, "video": torch.zeros(0), "error": error.reason}


def _key_of(clips: VideoFiles, model: EfficientViT3D, precision: str) -> str:
    digest = hashlib.sha256()
    arguments = {key: value for key, value in model.config.items() if key not in _NO_EFFECT}
    digest.update(repr((arguments, clips.sampling, clips.transform, precision)).encode())
    for name, tensor in _backbone(model):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _backbone(model: EfficientViT3D) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            yield name, tensor
