"""The processes that work on one thing together: what they tell each other, and how they deal the work out.

They are the members of torch's process group; a process without one is alone, and each function here is then trivial.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def joined(minutes: float = 30.0) -> Iterator[None]:
    """Join the processes that torchrun has started beside this one, on a GPU each where there are some.

    minutes: for which one waits for the others at most
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(minutes=minutes))
    try:
        yield
    finally:
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """This process's number among those that work together, from 0 on, and how many they are."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gathered(thing: Any) -> list[Any]:
    """What each process gives, in their order; the same list in all of them."""
    _, count = place()
    if count == 1:
        return [thing]
    things = [None] * count
    dist.all_gather_object(things, thing)
    return things


def largest(value: float) -> float:
    """The largest of the processes' values, the same in all of them.

    They agree on the CPU, because whoever reads a number from a GPU waits for all the work that is queued there.
    """
    if place()[1] == 1:
        return float(value)
    found = torch.tensor(float(value), dtype=torch.float64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=_on_cpu(dist.group.WORLD))
    return found.item()


def averaged(values: dict[str, Tensor]) -> dict[str, float]:
    """The means over the processes of scalars that each of them has, under the same names."""
    if not values:
        return {}
    found = torch.stack(list(values.values()))
    _, count = place()
    if count > 1:
        dist.all_reduce(found)
        found /= count
    return dict(zip(values, found.tolist(), strict=True))


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is dealt out among the processes, each of which must call this; another as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def dealt_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor as `other`, of the same shape, is: its device, its layout, dealt out among the processes or not."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "full_tensor"):
        same = tensor.stride() == other.stride()
        return tensor if same else torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.contiguous(), other.device_mesh, other.placements)


@cache
def _on_cpu(world: Any) -> Any:
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")
