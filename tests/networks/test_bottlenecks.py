"""The bottlenecks against closed forms: the divergence, the straight-through gradient, and the codebook by hand."""

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion.errors import UserError
from diffusion.networks import Gaussian, VectorQuantizer
from diffusion.random import generator

SIZES = [(3, 3), (2, 3, 4)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def column(*values: float) -> torch.Tensor:
    """One image of one channel with these values, (1, 1, N, 1)."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1)


def quantizer(*codes: float, count: float = 2.0, **options) -> VectorQuantizer:
    """A codebook of one channel that has seen one update and holds these codes, each used `count` times a batch."""
    net = VectorQuantizer(1, len(codes), **options).eval()
    net.codebook.copy_(torch.tensor(codes)[:, None])
    net.counts.fill_(count)
    net.sums.copy_(net.codebook * count)
    net.updates.fill_(1)
    return net


def held(net: VectorQuantizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("size", SIZES)
def test_divergence(size: tuple[int, ...]):
    """Its value by torch.distributions, and its gradients mean / n and (var - 1) / 2n for n latent values."""
    features = (1.5 * random(2, 6, *size)).requires_grad_()
    mean, log_variance = features.detach().chunk(2, 1)
    _, penalty, statistics = Gaussian(3)(features, None)
    posterior = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(penalty.detach(), expected)
    assert torch.equal(statistics["kl"], penalty.detach().mean()) and set(statistics) == {"kl"}
    penalty.sum().backward()
    n = mean[0].numel()
    torch.testing.assert_close(features.grad, torch.cat([mean / n, (log_variance.exp() - 1) / (2 * n)], 1))


def test_the_divergence_is_zero_for_the_prior_alone():
    assert torch.equal(Gaussian(3)(torch.zeros(2, 6, 3, 3), None)[1], torch.zeros(2))
    # var - 1 - log var, written so, is lost in rounding here: log_variance^2 / 4.
    assert Gaussian(1)(torch.tensor([0.0, 1e-4]).reshape(1, 2, 1, 1), None)[1].item() == pytest.approx(2.5e-9, rel=0.1)


@pytest.mark.parametrize(("log_variance", "clamped"), [(100.0, 20.0), (-100.0, -30.0)])
def test_log_variances_are_held(log_variance: float, clamped: float):
    features = torch.tensor([0.5, log_variance]).reshape(1, 2, 1, 1).requires_grad_()
    latents, penalty, _ = Gaussian(1)(features, lambda shape: torch.ones(1, *shape))
    assert latents.item() == pytest.approx(0.5 + math.exp(clamped / 2))
    assert penalty.item() == pytest.approx((0.25 + math.exp(clamped) - 1 - clamped) / 2)
    penalty.backward()
    assert features.grad[0, 1].item() == 0


@pytest.mark.parametrize("size", SIZES)
def test_gaussian_draws(size: tuple[int, ...]):
    """Mean + std * noise; the moments are mean and std; the decoder gets the latents as they are."""
    net, features, noise = Gaussian(3), random(2, 6, *size), random(2, 3, *size, seed=1)
    moments = net.moments(features)
    mean, std = features[:, :3], (features[:, 3:] / 2).exp()
    torch.testing.assert_close(moments, torch.cat([mean, std], 1))
    asked = []
    latents = net.draw(moments, lambda shape: asked.append(tuple(shape)) or noise)
    torch.testing.assert_close(latents, mean + std * noise)
    assert asked == [(3, *size)]
    assert torch.equal(net.draw(moments, None), moments[:, :3])
    assert torch.equal(net(features, lambda _: noise)[0], latents) and net.restore(latents) is latents


def test_gaussian_draws_have_the_mean_and_the_deviation_that_they_should():
    net, g = Gaussian(1), torch.Generator().manual_seed(0)
    moments = torch.tensor([0.7, 0.2]).reshape(1, 2, 1, 1).expand(40000, -1, -1, -1)
    latents = net.draw(moments, lambda shape: torch.randn(40000, *shape, generator=g))
    assert latents.mean().item() == pytest.approx(0.7, abs=5 * 0.2 / 200)
    assert latents.std().item() == pytest.approx(0.2, rel=5 / math.sqrt(2 * 40000))


def test_the_gradient_passes_through_a_draw():
    """To the mean as it is, to the log-variance times std * noise / 2."""
    features, noise = random(2, 2, 3, 3).requires_grad_(), random(2, 1, 3, 3, seed=1)
    weight = random(2, 1, 3, 3, seed=2)
    (weight * Gaussian(1)(features, lambda _: noise)[0]).sum().backward()
    std = (features.detach()[:, 1:] / 2).exp()
    torch.testing.assert_close(features.grad, torch.cat([weight, weight * std * noise / 2], 1))


@pytest.mark.parametrize("size", SIZES)
def test_the_nearest_code(size: tuple[int, ...]):
    """By all distances, vector by vector; and each position keeps its place."""
    net = VectorQuantizer(3, 10).eval()
    net.codebook.copy_(random(10, 3))
    latents = random(2, 3, *size, seed=1)
    restored = net.restore(latents)
    vectors, found = latents.movedim(1, -1).reshape(-1, 3), restored.movedim(1, -1).reshape(-1, 3)
    for vector, code in zip(vectors, found, strict=True):
        assert torch.equal(code, min(net.codebook, key=lambda c: (c - vector).square().sum().item()))
    assert torch.equal(net.restore(restored), restored)
    assert torch.equal(net.draw(net.moments(latents), lambda _: pytest.fail("nothing is random here")), latents)


def test_neighbouring_codes_are_told_apart_under_autocast():
    """bfloat16 has no number between 1 and 1.0078."""
    net = quantizer(1.0, 1.002, 1.004)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.restore(column(1.0019, 1.0041, 0.9)), column(1.002, 1.004, 1.0))
        assert net(column(1.0019, 1.0041, 0.9), None)[1].dtype == torch.float32


def test_straight_through():
    """The gradient at the features is the decoder's, plus 2 (f - code) / n of the commitment for n values."""
    net = VectorQuantizer(3, 10).eval()
    net.codebook.copy_(random(10, 3))
    features = random(2, 3, 4, 2, seed=1).requires_grad_()
    weight = random(2, 3, 4, 2, seed=2)
    codes = net.restore(features.detach())
    latents, penalty, _ = net(features, None)
    torch.testing.assert_close(latents.detach(), codes)
    torch.testing.assert_close(penalty.detach(), (features.detach() - codes).square().mean((1, 2, 3)))
    ((weight * latents).sum() + 0.3 * penalty.sum()).backward()
    torch.testing.assert_close(features.grad, weight + 0.3 * 2 * (features.detach() - codes) / 24)
    assert not list(net.parameters()) and not net.codebook.requires_grad


def test_statistics_of_known_use():
    """Shares 1/2, 1/4, 1/4 and 0 of four codes: perplexity 2^1.5, and three of four are used."""
    net = quantizer(0.0, 1.0, 2.0, 3.0)
    statistics = net(column(0.1, -0.1, 1.2, 1.8), None)[2]
    assert statistics["perplexity"].item() == pytest.approx(2**1.5)
    assert statistics["codes_used"].item() == 0.75
    assert net(column(2.0, 2.1), None)[2]["perplexity"].item() == pytest.approx(1.0)
    assert net(column(0.0, 1.0, 2.0, 3.0), None)[2]["perplexity"].item() == pytest.approx(4.0)


def test_two_updates_by_hand():
    """Codes 0 and 10, each with N = 2, decay 1/2.

    1, 2 | 9: n = 2, 1 and m = 3, 9; N = 2, 1.5 and M = 1.5, 14.5; codes 0.75 and 9.6667.
    0 | 10, 9.5: n = 1, 2 and m = 0, 19.5; N = 1.5, 1.75 and M = 0.75, 17; codes 0.5 and 9.7143.
    """
    net = quantizer(0.0, 10.0, decay=0.5, revive_below=0).train()
    latents, penalty, _ = net(column(1.0, 2.0, 9.0), None)
    torch.testing.assert_close(latents, column(0.0, 0.0, 10.0))  # the codes as they were
    assert penalty.item() == pytest.approx((1 + 4 + 1) / 3)
    torch.testing.assert_close(net.counts, torch.tensor([2.0, 1.5]))
    torch.testing.assert_close(net.sums, torch.tensor([[1.5], [14.5]]))
    torch.testing.assert_close(net.codebook, torch.tensor([[0.75], [29 / 3]]), rtol=1e-5, atol=1e-5)
    net(column(0.0, 10.0, 9.5), None)
    torch.testing.assert_close(net.counts, torch.tensor([1.5, 1.75]))
    torch.testing.assert_close(net.sums, torch.tensor([[0.75], [17.0]]))
    torch.testing.assert_close(net.codebook, torch.tensor([[0.5], [17 / 1.75]]), rtol=1e-5, atol=1e-5)
    assert net.updates.item() == 3


def test_counts_are_smoothed():
    """(N_k + e) / (N + K e) N: a code that is never used stays finite, and the others are hardly moved."""
    net = quantizer(0.0, 10.0, decay=0.0, revive_below=0).train()
    net(column(1.0, 2.0), None)
    counts, e = net.counts.double(), 1e-5
    assert counts.tolist() == [2.0, 0.0]
    smoothed = (counts + e) / (counts.sum() + 2 * e) * counts.sum()
    torch.testing.assert_close(net.codebook, (net.sums / smoothed[:, None]).float(), rtol=1e-6, atol=1e-6)
    assert net.codebook.isfinite().all() and net.codebook[0].item() == pytest.approx(1.5, rel=1e-4)


def test_the_first_codes_are_features_of_the_first_batch():
    """As many as there are, each once; the batch before them is quantised with them already."""
    net, features = VectorQuantizer(2, 18, decay=0.9), random(2, 2, 3, 3)
    latents, penalty, statistics = net.train()(features, None)
    torch.testing.assert_close(latents, features)
    torch.testing.assert_close(penalty, torch.zeros(2))
    assert statistics["perplexity"].item() == pytest.approx(18, rel=1e-5)
    torch.testing.assert_close(net.counts, torch.ones(18))
    order = torch.randperm(18, generator=generator("codebook", 0))
    torch.testing.assert_close(net.codebook, features.movedim(1, -1).reshape(-1, 2)[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codes", [5, 50])
def test_fewer_and_more_codes_than_features(codes: int):
    net, features = VectorQuantizer(2, codes, decay=0.9), random(2, 2, 3, 3)
    latents, _, statistics = net.train()(features, None)
    rows = features.movedim(1, -1).reshape(-1, 1, 2)
    assert (latents.movedim(1, -1).reshape(1, -1, 2) - rows).abs().amax(2).amin(0).max() < 1e-6
    assert statistics["codes_used"].item() == pytest.approx(min(codes, 18) / codes)
    assert net.codebook.isfinite().all()


def test_idle_codes_move_to_features_of_the_batch():
    """Codes 0 and 100, each with N = 2, decay 1/2; four features near 0 at each step; threshold half of uniform use.

    N = 3, 1: not below half of 2. Then N = 3.5, 0.5: the second code moves, and has N = 2, the common use.
    """
    net = quantizer(0.0, 100.0, decay=0.5, revive_below=0.5).train()
    net(column(1.0, 2.0, 3.0, 4.0), None)
    torch.testing.assert_close(net.counts, torch.tensor([3.0, 1.0]))
    assert net.codebook[1].item() == pytest.approx(100, rel=1e-4)
    batch = torch.tensor([-1.0, 1.5, 2.5, 3.5])
    net(batch.reshape(1, 1, 4, 1), None)
    moved_to = batch[torch.randperm(4, generator=generator("codebook", 2))[1]]
    torch.testing.assert_close(net.counts, torch.tensor([3.5, 2.0]))
    assert net.codebook[1].item() == pytest.approx(moved_to.item(), rel=1e-4)
    assert net.codebook[0].item() == pytest.approx(((0 + 10) / 2 + 6.5) / 2 / 3.5, rel=1e-4)


def test_a_code_that_nothing_is_near_moves_after_about_300_updates():
    """With the values that are the defaults, as the docstring says; one with a tenth of the common use stays."""
    net = quantizer(-10.0, 0.0, 10.0, 500.0, count=10.0).train()
    batch = column(*[-10.0] * 17, *[0.0] * 2, *[10.0] * 19)  # 0 has 2 of 9.5
    while net.codebook[3].item() > 400:
        net(batch, None)
    assert 250 < net.updates.item() < 350
    assert net.codebook[1].item() == pytest.approx(0, abs=1e-3)


def test_codes_stay_in_evaluation():
    net = quantizer(0.0, 10.0)
    before = held(net)
    net(column(1.0, 2.0, 9.0), None)
    net.train().restore(column(1.0, 2.0, 9.0))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_resumed_codebook_is_the_uninterrupted_one():
    """To the bit, whatever the global generator does, and while codes are revived."""

    def make(seed: int) -> VectorQuantizer:
        torch.manual_seed(seed)
        return VectorQuantizer(2, 16, decay=0.5, revive_below=0.5).train()

    def train(net: VectorQuantizer, steps: range) -> VectorQuantizer:
        for step in steps:
            net(random(2, 2, 3, 3, seed=step) + step, None)
        return net

    with torch.random.fork_rng():
        whole = train(make(0), range(12))
        half = held(train(make(1), range(5)))
        resumed = make(2)
        resumed.load_state_dict(half)
        train(resumed, range(5, 12))
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
        # The number of updates decides what is drawn: with another one the codes are others.
        other = make(3)
        other.load_state_dict(half | {"updates": torch.tensor(7)})
        assert not torch.equal(train(other, range(5, 12)).codebook, whole.codebook)


@pytest.mark.parametrize(
    "options", [{"codes": 1}, {"decay": 1.0}, {"decay": -0.1}, {"revive_below": 1.0}, {"revive_below": -0.1}]
)
def test_values_out_of_range_are_refused(options: dict):
    (name,) = options
    with pytest.raises(UserError, match=f"model.network.bottleneck.{name}=") as caught:
        VectorQuantizer(3, **options)
    assert "\n" not in str(caught.value)


def _share(rank: int, step: int) -> torch.Tensor:
    return random(2, 2, 3, 3, seed=10 * step + rank) + step


def _train_one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reviving = VectorQuantizer(2, 16, decay=0.5, revive_below=0.5).train()
    settled = VectorQuantizer(2, 4, decay=0.5, revive_below=0).train()
    settled.load_state_dict(torch.load(folder / "start.pt"))
    for step in range(6):
        reviving(_share(rank, step), None)
        settled(_share(rank, step), None)
    torch.save((held(reviving), held(settled)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_same_codes(tmp_path: Path):
    """To the bit, from other initial codes and other features; and those of one process that sees the whole batch."""
    alone = VectorQuantizer(2, 4, decay=0.5, revive_below=0).train()
    alone(_share(0, 0), None)
    torch.save(held(alone), tmp_path / "start.pt")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_train_one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    (first, settled), (second, settled_too) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]) and torch.equal(settled[name], settled_too[name]), name
    for step in range(6):
        alone(torch.cat([_share(rank, step) for rank in range(2)]), None)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(settled[name], value, rtol=1e-5, atol=1e-5)
