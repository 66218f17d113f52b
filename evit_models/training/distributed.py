"""One process without a launcher, several with torchrun: the rest of the loop sees `Ranks`."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evit_models.training.errors import ConfigError
from evit_models.training.sharding import forget_meshes, shard


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together.

    Args:
        rank, world: which one this is, and how many there are.
        device: where this process computes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum over processes of a tensor, which is changed in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in the order of ranks."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """Returns the first process's value."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def copy_from_first(self, tensors: list[Tensor]) -> None:
        """Gives tensors the first process's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def parallel(self, model: nn.Module, how: str = "ddp") -> nn.Module:
        """Returns the model with gradients averaged over processes; "fsdp" cuts it into shares."""
        if self.world == 1:
            return model
        if how == "fsdp":
            shard(model, self.device, self.world)
            return model
        # Without the search for unused parameters, gradients move to other buckets after the first
        # step; sums over more than two processes would then round differently after a restart.
        return DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=True,
        )


@contextmanager
def accumulating(network: nn.Module) -> Iterator[None]:
    """Lets gradients add up in every process, without averaging them over processes."""
    if isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
        return
    switch: Any = getattr(network, "set_requires_gradient_sync", lambda on: None)  # of FSDP2
    switch(False)
    yield
    switch(True)


@contextmanager
def ranks(device: str = "cpu", timeout: float = 600.0) -> Iterator[Ranks]:
    """Joins the processes that torchrun started, or is alone; leaves them at the end.

    Args:
        device: "cpu" or "cuda"; each process takes the GPU of its local rank.
        timeout: longest wait for another process, in seconds.

    Raises:
        ConfigError: more local processes than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(device=torch.device(device))
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with(os.getppid())
    place = torch.device(device)
    if place.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"device: process {local} has no GPU, PyTorch sees {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs"
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    _import_holders()
    dist.init_process_group(
        "nccl" if place.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout)
    )
    yield Ranks(dist.get_rank(), dist.get_world_size(), place)
    forget_meshes()
    gc.collect()  # models in shares are in cycles
    # After an error the others may still wait for this process: only leaving ends that.
    dist.destroy_process_group()


def _import_holders() -> None:
    """Imports, before there is a group of processes, what would otherwise keep it forever.

    Functions of these modules have "the group there is now" as the default of an argument, and
    optimisers, DDP and FSDP import them later. A group that is kept keeps threads of gloo, too,
    which may still ask for the interpreter when it is gone: the process then dies at its end.
    """
    for module in ("torch.distributed.nn.functional", "torch.distributed.fsdp"):
        importlib.import_module(module)


def _end_with(launcher: int) -> None:
    """Ends this process soon after the one that launched it, however that ended.

    A torchrun that is killed leaves its processes behind: they would go on writing where the same
    command, given again, writes too.
    """

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watches the launcher", daemon=True).start()


def restart_warning() -> str | None:
    """Returns why torchrun might not restart this run after a process was killed, or None."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if restarts and shared and os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1":
        return (
            "torchrun often fails to restart killed processes while they share its store; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
        )
    return None
