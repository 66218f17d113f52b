"""The training loop: steps that survive, and everything else called from here.

The random numbers of a step depend on (seed, step, rank) alone and the order of clips on (seed,
epoch), so a run that was killed goes on bit for bit as if nothing had happened.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from evit_models.training.config import TrainConfig
from evit_models.training.distributed import Ranks, accumulating
from evit_models.training.ema import AveragedModel
from evit_models.training.errors import ConfigError, TrainingError
from evit_models.training.evaluation import autocast, evaluate
from evit_models.training.loading import bottleneck, loader, move, read, reading
from evit_models.training.logging import RunLog
from evit_models.training.networks import make_model, settle_norms, train_mode
from evit_models.training.objective import Heads, Targets
from evit_models.training.optimizer import decay_weights, make_optimizer, set_learning_rate
from evit_models.training.run import RunFolder
from evit_models.training.sampler import StepSampler
from evit_models.training.schedule import learning_rate_scale
from evit_models.training.sharding import load_model, load_optimizer, whole

if TYPE_CHECKING:
    from evit_models.efficientvit3d import EfficientViT3D
    from evit_models.video.datasets import ClipDataset

_NAMED = 3  # videos that a warning names

#: Told of "resume", "features", "step", "evaluation" and "warning", each with facts.
Observer = Callable[[str, dict[str, Any]], object]

#: From a batch of clips and labels to mixed clips and shares of classes.
Mix = Callable[[Tensor, Any, np.random.Generator], tuple[Tensor, Any]]


class Trainer:
    """A training run in a folder; it begins, or goes on where the folder's checkpoints end.

    Args:
        config: everything about the run.
        folder: gets the configuration, checkpoints, log, curves and weights.
        train_set, eval_set: clips with labels of the same classes; without `eval_set` nothing is
            evaluated.
        ranks: this process and the others.
        mix: mixes the clips of a batch, or None.
        observe: is told what happens, in the first process only.

    Raises:
        ConfigError: data, configuration and folder do not fit each other.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        train_set: ClipDataset,
        eval_set: ClipDataset | None = None,
        *,
        ranks: Ranks | None = None,
        mix: Mix | None = None,
        observe: Observer = lambda kind, facts: None,
    ) -> None:
        self.config, self.ranks = config, ranks or Ranks()
        self.train_set, self.eval_set, self.mix = train_set, eval_set, mix
        self.heads = Heads(train_set.num_classes)
        if eval_set is not None and Heads(eval_set.num_classes).sizes != self.heads.sizes:
            raise ConfigError(
                f"eval_data: has {Heads(eval_set.num_classes).sizes} classes, the training data "
                f"has {self.heads.sizes}"
            )
        self.sampler = StepSampler(
            len(train_set),
            config.batch_size,
            config.accumulation,
            self.ranks.rank,
            self.ranks.world,
            config.seed,
        )
        self.steps_per_epoch = self.sampler.steps
        self.total_steps = config.epochs * self.steps_per_epoch
        self.run_folder = RunFolder(folder, config, self.ranks)
        self._observe = observe if self.ranks.first else lambda kind, facts: None

        if config.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        device = self.ranks.device
        self.model = make_model(config, self.heads.total).to(device)
        self.run_folder.describe(self.model, train_set, self.heads)
        self.average = AveragedModel(self.model, config.ema_decay) if config.ema_decay else None
        if config.sync_norm:
            if device.type != "cuda":
                raise ConfigError("sync_norm: PyTorch has synchronised norms on GPUs only")
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        learner: nn.Module = self._use_cache() if config.cache else self.model
        if config.compile:
            learner.compile()
        sharded = config.parallel == "fsdp" and self.ranks.world > 1
        self._whole = copy.deepcopy(self.model) if sharded and self.average is None else None
        self.network = self.ranks.parallel(learner, config.parallel)
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.step = 0
        self.skipped = self.skipped_in_a_row = 0
        self.best = -1.0
        self._advised = False
        self._replaced: set[str] = set()
        self._told_unreadable = False

    def run(self) -> dict[str, Any]:
        """Trains to the end of the schedule and returns the last evaluation's facts.

        Raises:
            TrainingError: the run cannot go on; says why and names the last good checkpoint.
            ConfigError: another process is training in the folder, or the checkpoint in it was made
                from other data or by another number of processes.
        """
        with self.run_folder.held():
            self.log = RunLog(
                self.run_folder.path if self.ranks.first else None,
                tensorboard=self.config.tensorboard,
            )
            self._resume()
            try:
                return self._train()
            finally:
                self.log.close()

    def _train(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self.config.cache:
            self._fill_cache()
        # An epoch's last checkpoint stands before its evaluation, which is then made again.
        first = max(0, self.step - 1) // self.steps_per_epoch
        for epoch in range(first, self.config.epochs):
            with reading(self.config, self.run_folder.safe):
                self._train_epoch(epoch)
            last = epoch + 1 == self.config.epochs
            if self.eval_set is not None and (last or (epoch + 1) % self.config.eval_epochs == 0):
                result = self._evaluate(epoch)
        self.run_folder.finish(self._shown_weights(), result)
        self.log.write("end", step=self.step, skipped=self.skipped)
        return result

    def _train_epoch(self, epoch: int) -> None:
        done = self.step - epoch * self.steps_per_epoch
        if done >= self.steps_per_epoch:
            return
        self.train_set.set_epoch(epoch)
        train_mode(self.network)
        batches = self.sampler.batches(epoch, done)
        iterator = read(
            loader(self.train_set, batches, self.config, self.ranks.device.type), self.config
        )
        waited = total = 0.0
        replaced: list[str] = []
        for _ in range(done, self.steps_per_epoch):
            start = time.perf_counter()
            ready = [next(iterator) for _ in range(self.config.accumulation)]
            waiting = time.perf_counter() - start
            facts = self._step(ready, epoch)
            seconds = time.perf_counter() - start
            waited, total = waited + waiting, total + seconds
            replaced += [text for batch in ready for text in batch.get("error", ()) if text]
            self._tell(facts, epoch, waiting, seconds)
            every = self.config.checkpoint_steps
            if self.step % self.steps_per_epoch == 0 or (every and self.step % every == 0):
                self._save()
        self._tell_replaced(replaced)
        advice = bottleneck(waited, total, self.config.workers)
        if advice and not self._advised:
            self._advised = True
            self._warn(advice)

    def _step(self, batches: list[dict[str, Any]], epoch: int) -> dict[str, float]:
        """Takes one step of the optimiser, or skips it where loss or gradient is not finite."""
        config, device = self.config, self.ranks.device
        seed = _step_seed(config.seed, self.step, self.ranks.rank)
        torch.manual_seed(seed)
        generator = np.random.default_rng(seed)
        lr = config.lr * learning_rate_scale(
            self.step,
            warmup=round(config.warmup_epochs * self.steps_per_epoch),
            total=self.total_steps,
            final=config.final_lr,
        )
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        if not config.pretrained:
            settle_norms(self.model, self.step)
        # A forward pass that overflows leaves NaN in the statistics of norms, skipped or not.
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for number, batch in enumerate(batches):
            video, targets = self._inputs(batch, generator)
            last = number + 1 == len(batches)
            with nullcontext() if last else accumulating(self.network):
                with autocast(config.precision, device):
                    logits = self.network(video)
                loss = self.heads.loss(logits, targets, config.label_smoothing)
                self.scaler.scale(loss / len(batches)).backward()
            with torch.no_grad():
                sums[0] += loss.double() / len(batches)
                sums[1] += self.heads.correct(logits, targets)
                sums[2] += len(video)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm or float("inf"))
        # Gradients are the same in every process; losses are not, so their sum decides.
        loss_sum, correct, clips = self.ranks.sum(sums).tolist()
        loss_value, norm_value = loss_sum / self.ranks.world, whole(norm).item()
        finite = bool(np.isfinite(loss_value) and np.isfinite(norm_value))
        if finite:
            decay_weights(self.optimizer)
            self.scaler.step(self.optimizer)
            self.skipped_in_a_row = 0
        else:
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                    buffer.copy_(before)
        scale = self.scaler.get_scale()
        self.scaler.update()
        self.step += 1
        if finite and self.average is not None:
            self.average.update(self.model)
        if not finite:
            self._skip(loss_value, norm_value, lowers_scale=scale > 1 and np.isfinite(loss_value))
        return {
            "loss": loss_value,
            "accuracy": correct / clips,
            "lr": lr,
            "grad_norm": norm_value,
            "clips": clips,
        }

    def _inputs(
        self, batch: dict[str, Any], generator: np.random.Generator
    ) -> tuple[Tensor, Targets]:
        video, label = (
            move(batch["video"], self.ranks.device),
            move(batch["label"], self.ranks.device),
        )
        if self.mix is not None:
            video, label = self.mix(video, label, generator)
        return video, self.heads.targets(label)

    def _skip(self, loss: float, norm: float, *, lowers_scale: bool) -> None:
        """Counts a skipped step; fp16 finds its scale by such steps, so those are not in a row."""
        self.skipped += 1
        self.skipped_in_a_row += not lowers_scale
        self.log.write("skip", step=self.step, loss=repr(loss), grad_norm=repr(norm))
        if self.skipped_in_a_row < self.config.max_skipped:
            return
        raise TrainingError(
            f"{self.skipped_in_a_row} steps in a row, the last of them {self.step}, had no finite "
            f"loss and gradient (loss {loss}, gradient norm {norm}): try a lower lr, a longer "
            f"warm-up, or precision bf16 or fp32; {self.run_folder.safe()}"
        )

    def _tell(self, facts: dict[str, float], epoch: int, waiting: float, seconds: float) -> None:
        numbers = {
            **{name: value for name, value in facts.items() if np.isfinite(value)},
            "step": self.step,
            "epoch": epoch,
            "clips_per_second": facts["clips"] / seconds,
            "data_share": waiting / seconds,
            "skipped": self.skipped,
            "memory_gb": _peak_memory(self.ranks.device),
        }
        if np.isfinite(facts["loss"]) and self.step % self.config.log_steps == 0:
            self.log.write("step", **numbers)
        self._observe("step", {**numbers, "total_steps": self.total_steps})

    def _tell_replaced(self, mine: list[str]) -> None:
        """Warns of each video that another one stood for, in whichever process, once."""
        for text in sorted({text for one in self.ranks.gather(mine) for text in one}):
            if text not in self._replaced:
                self._replaced.add(text)
                self._warn(f"{text}; another video stood for it")

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        assert self.eval_set is not None
        # The statistics of norms are the first process's, as DistributedDataParallel has them.
        shown = self._shown_weights()
        self.ranks.copy_from_first(list(shown.buffers()))
        network = self._head_of(shown) if self.config.cache else shown
        found = evaluate(network, self.heads, self.eval_set, self.config, self.ranks)
        if found.unreadable and not self._told_unreadable:
            self._told_unreadable = True
            self._warn(
                f"{len(found.unreadable)} videos of evaluation cannot be read; they are counted, "
                f"not replaced. The first are {', '.join([*found.unreadable.values()][:_NAMED])}"
            )
        rows = found.figures()
        facts = {
            "step": self.step,
            "epoch": epoch,
            "heads": rows,
            "unreadable": len(found.unreadable),
        }
        top1 = [row.get("top1", 0.0) for row in rows.values()]
        if sum(top1) / len(top1) > self.best:
            self.best = sum(top1) / len(top1)
            self.run_folder.keep_best(shown)
        self.log.write("evaluation", **facts)
        self._observe("evaluation", facts)
        return facts

    def _shown_weights(self) -> EfficientViT3D:
        """The weights to evaluate and to share, whole; all processes must ask for them."""
        if self.average is not None:
            return self.average.model
        if self._whole is None:
            return self.model
        self._whole.load_state_dict(whole(self.model.state_dict()))
        return self._whole

    def _save(self) -> None:
        state = {
            "model": whole(self.model.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "step": self.step,
            "best": self.best,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "config": asdict(self.config),
            "world": self.ranks.world,
            "clips": len(self.train_set),
        }
        self.run_folder.save(self.step, state)

    def _resume(self) -> None:
        found = self.run_folder.load(self._warn, clips=len(self.train_set))
        if found is None:
            self.log.write("start", steps=self.total_steps, processes=self.ranks.world)
            return
        path, state = found
        load_model(self.model, state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.best = state["step"], state["best"]
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self.log.write("resume", step=self.step, checkpoint=path.name)
        self._observe("resume", {"step": self.step, "checkpoint": str(path)})

    def _use_cache(self) -> nn.Module:
        """Puts features in the place of clips, and returns what learns from them."""
        from evit_models.training.features import CachedFeatures, HeadOnly

        self.train_set = CachedFeatures(self.train_set, self.model, self.config)
        if self.eval_set is not None:
            self.eval_set = CachedFeatures(self.eval_set, self.model, self.config)
        self._head_of = HeadOnly
        return HeadOnly(self.model)

    def _fill_cache(self) -> None:
        for clips in filter(None, (self.train_set, self.eval_set)):
            with reading(self.config, self.run_folder.safe):
                clips.fill(  # type: ignore[attr-defined]
                    self.model, self.config, self.ranks, warn=self._warn, observe=self._observe
                )

    def _warn(self, text: str) -> None:
        self.log.write("warning", text=text)
        self._observe("warning", {"text": text})


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for one step of one process; neighbours have nothing in common."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


def _peak_memory(device: torch.device) -> float:
    """The most memory that this process has used, on its GPU or at all, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
