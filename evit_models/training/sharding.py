"""FSDP2: parameters, gradients and the optimiser's state in shares, one per process.

Files know nothing of shares: what is saved is whole, and every process takes its share of what is
loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evit_models.training.errors import ConfigError

_meshes: list[Any] = []


def shard(model: nn.Module, device: torch.device, world: int) -> None:
    """Leaves to every process its share of a model's parameters; buffers stay whole.

    Each child of the model, a stage or the head, is whole again while it computes.

    Raises:
        ConfigError: this torch has no FSDP2.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ConfigError(f"parallel: fsdp needs torch 2.6 or later: {error}") from error
    mesh = init_device_mesh(device.type, (world,))
    _meshes.append(mesh)
    for child in model.children():
        fully_shard(child, mesh=mesh)
    fully_shard(model, mesh=mesh)


def forget_meshes() -> None:
    """Takes the group of processes from the meshes of this process, which PyTorch's caches keep."""
    for mesh in _meshes:
        getattr(mesh, "_pg_registry", {}).clear()  # torch 2.11 and later
    _meshes.clear()


def whole(value: Any) -> Any:
    """Returns a nest of tensors and values with whole tensors; all processes must call it."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.full_tensor() if is_share(value) else value


def shares(value: Tensor, like: Any) -> Any:
    """Returns this process's share of a whole tensor, cut as `like` is; nothing is sent."""
    if not is_share(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    place = (like.device_mesh, like.placements)
    return distribute_tensor(value.to(like.device), *place, src_data_rank=None)


def load_model(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads whole tensors into a model that may be in shares."""
    own = model.state_dict()
    model.load_state_dict({name: shares(value, own[name]) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads whole tensors into the optimiser of a model that may be in shares."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        number: {
            name: shares(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": cut})


def is_share(value: object) -> bool:
    """Tells whether this is a process's share of a tensor."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")
