"""The order of samples, as a pure function of (seed, step): no state to save, and a resumed run is exact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from datamodules.batch import DataError


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The permutation of range(n) that this epoch visits; int64 (n,)."""
    return permutation(n, f"{seed} order {epoch}")


def windowed_order(sizes: Sequence[int], window: int, seed: int, epoch: int) -> Tensor:
    """A permutation of range(sum(sizes)) that stays for long in a few of the parts of these sizes; int64 (n,).

    The parts in an order of this epoch, taken `window` at a time, and the samples of those permuted.
    """
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    parts, found = epoch_order(len(sizes), seed, epoch).tolist(), []
    for first in range(0, len(parts), window):
        places = torch.cat([torch.arange(starts[k], starts[k + 1]) for k in parts[first : first + window]])
        found.append(places[permutation(len(places), f"{seed} order {epoch} window {first // window}")])
    return torch.cat(found)


def permutation(n: int, name: str) -> Tensor:
    """A permutation of range(n) that hangs on the name alone; int64 (n,)."""
    # A hash, because neighbouring names, such as those of (seed, epoch), must not share or shift their streams.
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.randperm(n, generator=generator)


class EndlessBatches(Sampler[Tensor]):
    """Index tensors without end, for one rank.

    The shuffled epochs, laid end to end, form one stream: position k is place k % n of epoch k // n.
    Optimizer step s takes positions [s * batch_size, (s + 1) * batch_size), so batches cross the borders of
    epochs and none is cut short. They are dealt out in contiguous slices of batch_size / (world_size *
    accumulate): micro-batch m of rank r is slice m * world_size + r. Any number of ranks and any accumulation
    hence train on the same samples in each step.

    batch_size is the size of the whole batch of an optimizer step, over all ranks and micro-batches; `order` gives the
    permutation of an epoch, from (n, seed, epoch).
    DataError: there are no samples, or batch_size is not a positive multiple of world_size * accumulate.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        order: Callable[[int, int, int], Tensor] = epoch_order,
    ) -> None:
        if n < 1:
            raise DataError("there are no samples to draw from: give a data set with at least one")
        slices = world_size * accumulate
        if batch_size < 1 or batch_size % slices:
            raise DataError(
                f"batch_size={batch_size} cannot be shared by {world_size} processes x {accumulate} "
                f"accumulated batches: choose a positive multiple of {slices}"
            )
        self.n, self.batch_size, self.seed, self.start_step = n, batch_size, seed, start_step
        self.rank, self.world_size, self.accumulate, self.order = rank, world_size, accumulate, order

    def __iter__(self) -> Iterator[Tensor]:
        size = self.batch_size // (self.world_size * self.accumulate)
        epoch, order = -1, torch.empty(0)
        step = self.start_step
        while True:
            for micro in range(self.accumulate):
                position = step * self.batch_size + (micro * self.world_size + self.rank) * size
                pieces, wanted = [], size
                while wanted:
                    if position // self.n != epoch:
                        epoch = position // self.n
                        order = self.order(self.n, self.seed, epoch)
                    place = position % self.n
                    pieces.append(order[place : place + wanted])
                    position, wanted = position + len(pieces[-1]), wanted - len(pieces[-1])
                yield torch.cat(pieces)
            step += 1
