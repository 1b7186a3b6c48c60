"""Keyed randomness: the same numbers however a batch is cut, and the right distribution."""

import numpy as np
import pytest
import torch

from diffusion.random import (
    BLOCK,
    SampleNoise,
    generator,
    normal_block,
    seed_global,
    seed_of,
    simplex,
    stratified_uniform,
    uniform,
)

KEY = (0, "train", 5)
CUTS = [(0, 1), (0, BLOCK), (1, BLOCK), (BLOCK - 1, 2), (BLOCK, BLOCK), (3, 3 * BLOCK), (4 * BLOCK - 1, 1)]


@pytest.mark.parametrize(("first", "count"), CUTS)
def test_a_slice_alone_is_the_slice_of_the_whole(first: int, count: int):
    """At, before and across the borders of the blocks."""
    cut = slice(first, first + count)
    assert torch.equal(normal_block(KEY, first, count, (2, 3)), normal_block(KEY, 0, 4 * BLOCK, (2, 3))[cut])
    assert torch.equal(uniform(KEY, first, count), uniform(KEY, 0, 4 * BLOCK)[cut])
    assert torch.equal(stratified_uniform(KEY, first, count, 40), stratified_uniform(KEY, 0, 40, 40)[cut])


@pytest.mark.parametrize("ways", [1, 2, 4, 5])
def test_processes_share_one_batch(ways: int):
    """The batch of 20 by 1, 2, 4 or 5 processes is the same batch."""
    share = 20 // ways
    parts = torch.cat([normal_block(KEY, rank * share, share, (4,)) for rank in range(ways)])
    assert torch.equal(parts, normal_block(KEY, 0, 20, (4,)))


def test_dropout_is_as_the_seed_of_all_devices_has_it():
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(*KEY))
        expected = torch.nn.functional.dropout(torch.ones(1000))
        torch.rand(7)
        seed_global(torch.device("cpu"), *KEY)
        assert torch.equal(torch.nn.functional.dropout(torch.ones(1000)), expected)


def test_other_keys_give_other_numbers():
    keys = [
        KEY,
        (1, "train", 5),
        (0, "val", 5),
        (0, "train", 6),
        (0, "train"),
        ("0", "train", 5),
        (0, "train5"),
    ]
    assert len({seed_of(*key) for key in keys}) == len(keys)
    for draw in (
        lambda k: normal_block(k, 0, 8, (1,)),
        lambda k: uniform(k, 0, 8),
        lambda k: stratified_uniform(k, 0, 8, 8),
    ):
        assert len({tuple(draw(key).flatten().tolist()) for key in keys}) == len(keys)


def test_places_of_a_batch_differ():
    noise = normal_block(KEY, 0, 4 * BLOCK, (3,))
    assert len(noise.unique(dim=0)) == 4 * BLOCK
    assert len(uniform(KEY, 0, 4 * BLOCK).unique()) == 4 * BLOCK


def test_seeds_fit_and_stay_what_they_are():
    """The value is part of every run on disk: another hash would change all of them without a word."""
    seeds = [seed_of("step", i) for i in range(1000)]
    assert min(seeds) >= 0 and max(seeds) < 2**63 and len(set(seeds)) == 1000
    assert seed_of(0, "train", 5) == 611307461029488101


def test_global_state_is_neither_read_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = normal_block(KEY, 0, 8, (2,)), uniform(KEY, 0, 8), SampleNoise([1])((2,))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = normal_block(KEY, 0, 8, (2,)), uniform(KEY, 0, 8), SampleNoise([1])((2,))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_normal_moments():
    """40,000 numbers: mean, variance and kurtosis within 4 standard errors, no correlation between places."""
    x = normal_block(KEY, 0, 400, (100,)).double()
    n = x.numel()
    assert x.mean().abs() < 4 / n**0.5
    assert (x.var() - 1).abs() < 4 * (2 / n) ** 0.5
    assert (x**4).mean().sub(3).abs() < 4 * (96 / n) ** 0.5
    assert (x[:-1] * x[1:]).mean().abs() < 4 / n**0.5


def test_uniform_moments():
    u = uniform(KEY, 0, 40_000)
    assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
    assert (u.mean() - 1 / 2).abs() < 4 * (1 / 12 / len(u)) ** 0.5
    assert (u.var() - 1 / 12).abs() < 4 * (1 / 180 / len(u)) ** 0.5


@pytest.mark.parametrize("total", [1, 7, 64])
def test_strata_hold_one_number_each(total: int):
    for step in range(20):
        u = stratified_uniform((0, step), 0, total, total)
        assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
        assert sorted((u * total).floor().int().tolist()) == list(range(total))


def test_each_stratified_number_alone_is_uniform():
    """Place 3 of 8 over 4,000 steps: mean and variance within 4 standard errors."""
    u = torch.cat([stratified_uniform((0, step), 3, 1, 8) for step in range(4000)])
    assert (u.mean() - 1 / 2).abs() < 4 * (1 / 12 / len(u)) ** 0.5
    assert (u.var() - 1 / 12).abs() < 4 * (1 / 180 / len(u)) ** 0.5


def test_sample_noise_depends_on_its_own_seed_alone():
    """Whatever stands beside it; draw after draw."""
    together, alone, moved = SampleNoise([3, 7, 5]), SampleNoise([7]), SampleNoise([7, 3])
    for _ in range(3):
        noise = together((2, 4))
        assert noise.shape == (3, 2, 4) and noise.dtype == torch.float32
        assert torch.equal(noise[1:2], alone((2, 4)))
        assert torch.equal(noise[[1, 0]], moved((2, 4)))
        assert len(noise.unique(dim=0)) == 3


def test_sample_noise_is_new_at_each_draw():
    noise = SampleNoise([1])
    assert not torch.equal(noise((4,)), noise((4,)))


@pytest.mark.parametrize("seeds", [np.arange(3), torch.arange(3), range(3)], ids=["numpy", "torch", "range"])
def test_a_seed_is_its_number(seeds):
    """A seed that comes from an array is the seed that comes from a list."""
    assert torch.equal(SampleNoise(seeds)((4,)), SampleNoise([0, 1, 2])((4,)))


def test_generator_is_seeded_by_the_key():
    draws = [torch.randn(3, generator=generator(*key)) for key in (KEY, KEY, (1,))]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("side", "axes"), [(9, 2), (4, 3)])
def test_simplex_noise_has_mean_0_and_variance_1_at_every_pixel(side, axes):
    x = simplex(3000, (1, *[side] * axes), generator("simplex")).flatten(1)
    assert x.mean(0).abs().max() < 5 / 3000**0.5
    assert (x.var(0) - 1).abs().max() < 0.2 and abs(x.var(0).mean().item() - 1) < 0.05


def test_simplex_noise_is_smoother_the_nearer_pixels_are():
    """Half of the weight is in octaves of 16 pixels and more: neighbours are alike, far pixels are not."""
    x = simplex(400, (2, 1, 64), generator("simplex"))
    alike = [(x[..., :-d] * x[..., d:]).mean().item() for d in (1, 2, 4, 8, 48)]
    assert 0.9 > alike[0] > alike[1] > alike[2] > alike[3] > 0.2 and abs(alike[4]) < 0.15
    assert abs((x[:, 0] * x[:, 1]).mean()) < 0.1, "channels are drawn by themselves"


def test_simplex_noise_hangs_on_the_seed_of_a_sample_alone():
    whole = SampleNoise([3, 4, 5], draw=simplex)((2, 6, 5))
    assert torch.equal(whole[1:2], SampleNoise([4], draw=simplex)((2, 6, 5))) and whole.shape == (3, 2, 6, 5)
    block = normal_block(("key",), 0, 20, (1, 6, 5), draw=simplex)
    assert torch.equal(normal_block(("key",), 5, 9, (1, 6, 5), draw=simplex), block[5:14])
