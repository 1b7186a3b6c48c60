"""The cross-entropy of pixels, and training for one noise level."""

import pytest
import torch
import torch.nn.functional as F

from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.grids import Uniform
from diffusion.networks import CNN, UNet
from diffusion.objectives import Bound, CrossEntropy, Objective, OneLevel, Simple, UniformTime
from diffusion.parameterizations import EDM as EDMParameterization
from diffusion.parameterizations import X0
from diffusion.schedulers import EDM, Cosine
from tests.analytic import EVERY_SCHEDULER, Answer, times

OBJECTIVE = CrossEntropy(OneLevel(0.5), Simple())


@pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
def test_one_level_is_one_level_under_every_schedule(scheduler):
    t = Objective(OneLevel(0.3), Simple()).time(torch.linspace(0, 0.99, 5).double(), scheduler)
    assert t.shape == (5,) and t.dtype == torch.float64
    torch.testing.assert_close(scheduler.sigma(t) / scheduler.alpha(t), torch.full_like(t, 0.3))


def test_levels_out_of_reach_are_refused():
    with pytest.raises(UserError, match=r"objective\.times\.level=0"):
        OneLevel(0.0)
    with pytest.raises(UserError, match="beyond the end"):
        OneLevel(90.0)(times(0.5), EDM())


def test_it_is_the_binary_cross_entropy_of_the_logits():
    g = torch.Generator().manual_seed(0)
    logits, x0, noise = (torch.randn(2, 1, 4, 4, generator=g) for _ in range(3))
    x0 = x0.tanh()
    logits[0, 0, 0, 0], logits[0, 0, 0, 1] = 60.0, -60.0  # where tanh is 1 in float32
    denoiser = NetworkDenoiser(Cosine(), X0(0.5), Answer(torch.tanh(logits / 2)))
    expected = F.binary_cross_entropy_with_logits(logits.clamp(-14.5, 14.5), (1 + x0) / 2, reduction="none")
    found = OBJECTIVE.loss(denoiser, x0, noise, times(0.2, 0.7), None)
    torch.testing.assert_close(found, expected.flatten(1).mean(1), rtol=1e-3, atol=1e-4)


def test_the_best_answer_is_the_mean():
    """Of pixels that are white with probability 0.3, in closed form: E[x0] = -0.4, for both objectives."""
    x0 = torch.where(torch.arange(100) < 30, 1.0, -1.0)[:, None, None, None]
    for objective in (OBJECTIVE, Objective(OneLevel(0.5), Simple())):
        answer = torch.zeros(1, 1, 1, 1, requires_grad=True)
        optimizer = torch.optim.SGD([answer], lr=0.2)
        for _ in range(100):
            optimizer.zero_grad()
            network = Answer(answer)
            denoiser = NetworkDenoiser(EDM(), X0(0.5), network)
            objective.loss(denoiser, x0, torch.zeros_like(x0), times(0.5).expand(100), None).mean().backward()
            optimizer.step()
        assert answer.item() == pytest.approx(-0.4, abs=1e-3)


@pytest.mark.parametrize(
    ("parameterization", "network", "pixels"),
    [
        (X0(0.5), CNN(1, 1, (8, 8)), True),
        (X0(0.5), UNet(1, 1, (8, 8), channels=8), True),
        (EDMParameterization(0.5), CNN(1, 1, (8, 8), bounded=True), True),
        (X0(0.5), CNN(1, 1, (8, 8), bounded=True), False),
    ],
    ids=["unbounded", "unet", "skip", "latents"],
)
def test_what_has_no_logits_is_refused(parameterization, network, pixels):
    OBJECTIVE.check(NetworkDenoiser(EDM(), X0(0.5), CNN(1, 1, (8, 8), bounded=True)), pixels=True)
    with pytest.raises(UserError, match=r"network\.bounded=true"):
        OBJECTIVE.check(NetworkDenoiser(EDM(), parameterization, network), pixels)


def test_a_bound_is_refused():
    with pytest.raises(UserError, match=r"objective\.bound"):
        CrossEntropy(UniformTime(), Simple(), bound=Bound(Uniform(4)))
