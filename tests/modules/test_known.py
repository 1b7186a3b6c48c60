"""Training on incomplete images: unknown pixels leave no trace, and known ones teach what whole images would."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from datamodules.arrays.split import Split
from datamodules.batch import DataSpec
from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.models.deviation import std_of
from diffusion.models.diffusion import known_pixels
from diffusion.networks import Incomplete
from diffusion.objectives import Objective, OneLevel, Simple
from diffusion.parameterizations import EDM as EDMParameterization
from diffusion.schedulers import EDM
from tests.analytic import COVARIANCE, MEAN, GaussianDenoiser, randomise, times
from tests.training import SMALL, built, composed

SPEC = DataSpec((1, 8, 8), 10, mask_classes=2)


@pytest.fixture(scope="module")
def config():
    return composed([*SMALL, "network.dropout=0", "model.known=mask"])


def gradients(config, images, mask):
    _, module = built(config, SPEC, std=0.6)
    module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0, global_step=0)
    randomise(module.network)
    loss = module.training_step({"image": images, "mask": mask, "label": torch.arange(4)}, 0)
    loss.backward()
    return loss, [p.grad for p in module.network.parameters()]


def test_gradients_are_the_same_to_the_bit_whatever_is_unknown(config):
    rng = torch.Generator().manual_seed(0)
    images, other = torch.rand(2, 4, 1, 8, 8, generator=rng) * 2 - 1
    mask = (torch.rand(4, 1, 8, 8, generator=rng) > 0.3).float()
    mask[3] = 0.0  # an image of which nothing is known
    loss, found = gradients(config, images, mask)
    changed = torch.where(mask > 0, images, 100 * other)
    again, same = gradients(config, changed, mask)
    assert torch.equal(loss, again) and loss > 0
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
    _, different = gradients(config, torch.where(mask > 0, other, images), mask)
    assert any(not torch.equal(a, b) for a, b in zip(found, different, strict=True))


def test_all_known_is_as_if_nothing_were_said():
    """The network is then told zeros, as where images are drawn."""
    torch.manual_seed(0)
    network = Incomplete(lambda in_channels, size: nn.Conv2d(in_channels, 1, 3, padding=1), 1, (6, 6))
    network.network.forward, plain = (lambda f: lambda x, *_: f(x))(network.network.forward), None
    denoiser = NetworkDenoiser(EDM(), EDMParameterization(0.5), network)
    x0, noise = torch.randn(2, 3, 1, 6, 6)
    objective, t = Objective(OneLevel(0.4), Simple()), times(0.3, 0.4, 0.5)
    plain = objective.loss(denoiser, x0, noise, t, None)
    torch.testing.assert_close(objective.loss(denoiser, x0, noise, t, {"known": torch.ones(3, 1, 6, 6) > 0}), plain)


class Dense(nn.Module):
    def __init__(self, in_channels, size):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * in_channels, 64), nn.SiLU(), nn.Linear(64, 3))

    def forward(self, x, c_noise, cond=None):
        return self.layers(x).reshape(len(x), 1, 1, 3)


def learnt(fill: bool) -> torch.Tensor:
    """Root mean square distance from the best denoiser of whole images, learnt from a third of pixels missing.

    fill: they are taken for 0 and trained on, as a method that knows of no masks has to.
    """
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(EDM(), EDMParameterization(0.5), Incomplete(Dense, 1, (1, 3)))
    objective, level = Objective(OneLevel(0.4), Simple()), 0.4
    factor, mean = torch.linalg.cholesky(torch.tensor(COVARIANCE)), torch.tensor(MEAN)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 700)
    for _ in range(700):
        x0 = (mean + torch.randn(256, 3) @ factor.T)[:, None, None]
        known = torch.rand(256, 1, 1, 3) > 1 / 3
        cond = None if fill else {"known": known}
        t = objective.time(torch.zeros(256).double(), EDM())
        x0 = torch.where(known, x0, 0.0 if fill else 1e3)
        optimizer.zero_grad()
        objective.loss(denoiser, x0, torch.randn(x0.shape), t, cond).mean().backward()
        optimizer.step()
        schedule.step()
    exact = GaussianDenoiser(EDM())
    y = (mean + torch.randn(2000, 3) @ factor.T) + level * torch.randn(2000, 3)
    with torch.no_grad():
        found = denoiser(y[:, None, None], t[0])[:, 0, 0]
    return (found - exact(y.double(), t[0])).square().mean().sqrt()


@pytest.mark.slow
def test_incomplete_images_teach_the_denoiser_of_whole_ones():
    """The best answer itself has an error of 0.25."""
    assert learnt(fill=False) < 0.02
    assert learnt(fill=True) > 0.07


def test_the_spread_of_the_data_is_that_of_known_pixels():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(100, 120, (70, 3, 5, 5), generator=rng, dtype=torch.uint8)
    masks = torch.rand(70, 1, 5, 5, generator=rng) > 0.4
    spoilt = torch.where(masks, images, 255).to(torch.uint8)
    expected = (images.double() / 127.5 - 1)[masks.expand_as(images)].std(correction=0).item()
    assert std_of(known_pixels(Split(spoilt, masks=masks.to(torch.uint8)))) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UserError, match="no pixel"):
        std_of(known_pixels(Split(images, masks=torch.zeros(70, 1, 5, 5, dtype=torch.uint8))))


def test_what_would_leak_is_refused(config):
    with pytest.raises(UserError, match="data with masks"):
        built(config, dataclasses.replace(SPEC, mask_classes=None), std=0.6)
    for word, said in (("augmentation=affine", "augmentation=none"), ("objective=edm_hybrid", "without a bound")):
        with pytest.raises(UserError, match=said):
            built(composed([*SMALL, "model.known=mask", word]), SPEC, std=0.6)
    with pytest.raises(UserError, match=r"model\.known=image"):
        built(composed([*SMALL, "model.known=image"]), SPEC, std=0.6)
