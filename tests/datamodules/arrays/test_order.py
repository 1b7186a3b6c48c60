from itertools import islice

import pytest
import torch

from datamodules.arrays.order import EndlessBatches, epoch_order
from datamodules.batch import DataError


def first(count: int, **options) -> list[torch.Tensor]:
    return list(islice(EndlessBatches(**options), count))


def test_each_epoch_is_another_permutation_and_repeats_by_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(50, seed, epoch) for seed in range(3) for epoch in range(3)}
    for key, order in orders.items():
        assert torch.equal(order.sort().values, torch.arange(50))
        assert torch.equal(order, epoch_order(50, *key))
    assert len({tuple(order.tolist()) for order in orders.values()}) == 9


def test_the_order_draws_nothing_from_the_global_generator():
    before = torch.random.get_rng_state()
    first(5, n=7, batch_size=3, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (4, 4), (3, 8), (1, 5), (100, 7)])
def test_the_batches_are_the_epochs_laid_end_to_end(n, batch_size):
    steps = 3 * n
    stream = torch.cat(first(steps, n=n, batch_size=batch_size, seed=5))
    epochs = torch.cat([epoch_order(n, 5, epoch) for epoch in range(3 * batch_size)])
    assert torch.equal(stream, epochs)


@pytest.mark.parametrize("start", [1, 2, 3, 17, 1000])
def test_starting_at_a_step_gives_the_tail(start):
    whole = first(start + 5, n=11, batch_size=4, seed=1)
    tail = first(5, n=11, batch_size=4, seed=1, start_step=start)
    assert torch.equal(torch.stack(whole[start:]), torch.stack(tail))


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 2)])
@pytest.mark.parametrize("start", [0, 7])
def test_ranks_and_micro_batches_together_are_the_global_batch_in_order(world_size, accumulate, start):
    options = {"n": 31, "batch_size": 24, "seed": 2, "start_step": start}
    ranks = [
        first(6 * accumulate, **options, rank=rank, world_size=world_size, accumulate=accumulate)
        for rank in range(world_size)
    ]
    dealt = [ranks[rank][k] for k in range(6 * accumulate) for rank in range(world_size)]
    assert torch.equal(torch.cat(dealt), torch.cat(first(6, **options)))
    assert {len(piece) for piece in dealt} == {24 // (world_size * accumulate)}


def test_there_is_no_length():
    with pytest.raises(TypeError):
        len(EndlessBatches(10, 2, seed=0))


@pytest.mark.parametrize("options", [{"batch_size": 6, "world_size": 4}, {"batch_size": 5, "accumulate": 2}])
def test_a_batch_that_cannot_be_shared_is_refused(options):
    with pytest.raises(DataError, match="choose a positive multiple of"):
        EndlessBatches(10, seed=0, **options)


def test_no_samples_and_no_batch_are_refused():
    with pytest.raises(DataError, match="no samples"):
        EndlessBatches(0, 2, seed=0)
    with pytest.raises(DataError, match="batch_size=0"):
        EndlessBatches(3, 0, seed=0)
