"""What all datasets share: samples that collate, randomness that depends on the sample alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from evit_models.video.datasets import ClipDataset, DatasetError, DummyClips, Sample
from evit_models.video.seeds import sample_generator


class Draws(ClipDataset):
    """Every sample is one number from its generator."""

    def __init__(self, count: int, seed: int = 0) -> None:
        super().__init__(training=True, seed=seed)
        self.num_classes = {"verb": 2, "noun": 3}
        self.class_names = None
        self.labels = {"verb": [i % 2 for i in range(count)], "noun": [i % 3 for i in range(count)]}
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        self._check_index(index)
        video = torch.tensor(self._generator(index).random(1), dtype=torch.float32)
        return Sample(
            video=video,
            label=self.label_of(index),
            index=index,
            valid=True,
            source=f"number {index}",
            error="",
        )


def test_a_batch_has_every_field_and_one_label_per_head() -> None:
    batch = next(iter(DataLoader(Draws(6), batch_size=6)))
    assert batch["video"].shape == (6, 1)
    assert batch["label"]["verb"].tolist() == [0, 1, 0, 1, 0, 1]
    assert batch["label"]["noun"].tolist() == [0, 1, 2, 0, 1, 2]
    assert batch["index"].tolist() == list(range(6))
    assert batch["valid"].dtype == torch.bool
    assert batch["source"][5] == "number 5"


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_that_live_on_see_the_epoch_change(context: str) -> None:
    data = Draws(4)
    loader = DataLoader(
        data, batch_size=2, num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 3, 1):
        data.set_epoch(epoch)
        drawn = torch.cat([batch["video"] for batch in loader]).flatten().tolist()
        plain = [sample_generator(0, epoch, i).random() for i in range(4)]
        assert drawn == np.array(plain, dtype=np.float32).tolist()


def test_seed_epoch_index_and_stream_all_matter() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({sample_generator(*key).random() for key in keys}) == len(keys)


def test_dummy_clips_have_the_shapes_of_real_ones() -> None:
    training = DummyClips(5, frames=4, size=16, num_classes=3)
    assert training[4]["video"].shape == (3, 4, 16, 16)
    assert training.labels == [0, 1, 2, 0, 1]
    evaluation = DummyClips(5, frames=4, size=16, num_classes=3, training=False)
    assert evaluation[0]["video"].shape == (1, 3, 4, 16, 16)
    assert len(list(evaluation)) == 5  # IndexError ends the loop


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="DummyClips: frames is 0"):
        DummyClips(1, frames=0)
    with pytest.raises(ValueError, match="DummyClips: seed is -1"):
        DummyClips(1, seed=-1)
    with pytest.raises(ValueError, match="epoch is -1"):
        DummyClips(1).set_epoch(-1)
    with pytest.raises(IndexError, match="index is 1, there are 1"):
        DummyClips(1)[1]
    assert str(DatasetError("a.txt", "is empty", 3)) == "a.txt, line 3: is empty"
