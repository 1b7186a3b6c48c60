"""Maps of what a model does not expect, held to Gaussian data, whose denoiser is known."""

import pytest
import torch

from diffusion.codecs import Identity
from diffusion.denoiser import Prediction
from diffusion.generative import GenerativeModel, time_of
from diffusion.grids import LogSNR
from diffusion.samplers import ddim
from diffusion.schedulers import EDM, Cosine
from diffusion.tasks.anomaly import (
    GREY_LEVEL,
    Rebuilt,
    combined,
    expected,
    inverted,
    rebuilt,
    redrawn,
    score_of,
    surprise,
)
from diffusion.tasks.novelty import VARIANCE, mahalanobis, principal_components, principal_rebuilt
from tests.analytic import GaussianDenoiser

S2 = (0.3, 0.2, 0.02)
MEAN = (0.1, -0.2, 0.0)


class Pixels(GaussianDenoiser):
    """Images (B, 1, 1, 3) of independent Gaussian pixels."""

    def __init__(self, scheduler, mean=MEAN):
        super().__init__(scheduler, mean, torch.diag(torch.tensor(S2)).tolist())

    def predict(self, x_t, t, cond=None):
        return Prediction(super().predict(x_t.reshape(-1, 3).double(), t).mean.float().reshape(x_t.shape))


def model(scheduler, mean=MEAN, steps: int = 200) -> GenerativeModel:
    return GenerativeModel(Pixels(scheduler, mean), Identity(), ddim, LogSNR(steps))


@pytest.fixture(params=[Cosine(), EDM()], ids=["cosine", "edm"])
def scheduler(request):
    return request.param


IMAGES = torch.tensor([[200, 90, 130], [128, 128, 128], [10, 250, 100]], dtype=torch.uint8).reshape(3, 1, 1, 3)
X = IMAGES.flatten(1).double() / 127.5 - 1


def gain_of(scheduler, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha g and sigma^2 g^2 of D(x_t) = m + g (x_t - alpha m), by pixel."""
    t = time_of(scheduler, strength)
    alpha, sigma = scheduler.alpha(t), scheduler.sigma(t)
    gain = alpha * torch.tensor(S2) / (alpha**2 * torch.tensor(S2) + sigma**2)
    return alpha * gain, (sigma * gain) ** 2


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_what_is_expected_of_gaussian_pixels(scheduler, strength):
    """Over many draws the mean is m + alpha g (x - m), and the draws' variance sigma^2 g^2."""
    draws = 300
    found = rebuilt(expected(model(scheduler)), IMAGES, [0, 1, 2], [strength], draws, seed=0, batch_size=2)
    share, spread = gain_of(scheduler, strength)
    mean = torch.tensor(MEAN) + share * (X - torch.tensor(MEAN))
    error = (X - mean) ** 2
    assert found.error.shape == found.spread.shape == (3, 1, 1, 3) and found.images.shape == (3, 1, 1, 1, 3)
    tolerance = 5 * (2 * error.sqrt() * (spread / draws).sqrt() + spread / draws)
    assert ((found.error.flatten(1) - error).abs() <= tolerance + 1e-6).all()
    assert found.spread.flatten(1) == pytest.approx(spread.expand(3, 3), rel=0.4)


@pytest.mark.slow
def test_images_redrawn_along_the_flow(scheduler):
    """The flow keeps quantiles: the draws have mean m + sqrt(alpha g) (x - m), variance s^2 (1 - alpha g)."""
    draws = 100
    found = rebuilt(redrawn(model(scheduler, steps=40)), IMAGES, [0, 1, 2], [0.6], draws, seed=0, batch_size=4)
    share, _ = gain_of(scheduler, 0.6)
    wanted = (X - torch.tensor(MEAN) - share.sqrt() * (X - torch.tensor(MEAN))) ** 2
    spread = torch.tensor(S2) * (1 - share)
    tolerance = 5 * (2 * wanted.sqrt() * (spread / draws).sqrt() + spread / draws) + 0.01
    assert ((found.error.flatten(1) - wanted).abs() <= tolerance).all()
    assert found.spread.flatten(1) == pytest.approx(spread.expand(3, 3), rel=0.5)


def test_an_image_has_its_map_whatever_is_beside_it(scheduler):
    keys = {"strengths": [0.2, 0.6], "draws": 3, "seed": 7}
    whole = rebuilt(expected(model(scheduler)), IMAGES, [4, 9, 2], batch_size=3, **keys)
    alone = rebuilt(expected(model(scheduler)), IMAGES[1:2], [9], batch_size=1, **keys)
    torch.testing.assert_close(whole.error[1:2], alone.error)
    other = rebuilt(expected(model(scheduler)), IMAGES[1:2], [9], batch_size=1, **keys | {"seed": 8})
    assert not torch.allclose(other.error, alone.error)
    torch.testing.assert_close(whole.at([1]).spread, whole.spread[:, 1:])


def test_inversion_and_back_is_the_image_itself(scheduler):
    same = model(scheduler, steps=200)
    found = inverted(same, same)(X.float().reshape(3, 1, 1, 3), 0.7, None, [0, 1, 2])
    assert found.flatten(1) == pytest.approx(X.float(), abs=0.04)


def test_inversion_moves_an_image_towards_the_other_mean(scheduler):
    """Up along the flow of N(m, s^2), down along that of N(m', s^2): x + (m' - m) (1 - alpha s / std(x_t))."""
    towards = (0.5, 0.1, -0.3)
    plain, guided = model(scheduler, steps=200), model(scheduler, towards, steps=200)
    found = inverted(plain, guided)(X.float().reshape(3, 1, 1, 3), 0.7, None, [0, 1, 2])
    t = time_of(scheduler, 0.7)
    alpha, sigma, s2 = scheduler.alpha(t), scheduler.sigma(t), torch.tensor(S2, dtype=torch.float64)
    kept = alpha * s2.sqrt() / (alpha**2 * s2 + sigma**2).sqrt()
    wanted = X + (torch.tensor(towards) - torch.tensor(MEAN)) * (1 - kept)
    assert found.flatten(1).double() == pytest.approx(wanted, abs=0.05)


def test_surprise_is_error_over_spread_and_normal_images_have_one():
    error = torch.rand(5, 2, 6, 6) + 0.5
    found = Rebuilt(error, torch.full_like(error, 0.25), torch.zeros(5, 2, 1, 6, 6, dtype=torch.uint8))
    torch.testing.assert_close(surprise(found, 0.0), error / (0.25 + GREY_LEVEL))
    flat = surprise(found._replace(error=torch.full_like(error, 2.0)), 1.5)
    torch.testing.assert_close(flat, torch.full_like(error, 2 / (0.25 + GREY_LEVEL)))
    maps = surprise(found, 1.0)
    assert combined(maps, maps).mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(combined(torch.cat([maps, 3 * maps]), maps)[5:], 3 * combined(maps, maps))


def test_scores_of_one_side_and_of_both():
    normal = torch.exp(torch.linspace(-1, 1, 101)).reshape(-1, 1, 1).expand(-1, 2, 2)
    maps = torch.exp(torch.tensor([-3.0, 0.0, 3.0])).reshape(-1, 1, 1).expand(-1, 2, 2)
    high, both = (score_of(maps, normal, 0.9, sides) for sides in (False, True))
    torch.testing.assert_close(high, maps[:, 0, 0].double())
    std = torch.linspace(-1, 1, 101).double().std(correction=0)
    torch.testing.assert_close(both, torch.tensor([3.0, 0.0, 3.0]).double() / std, atol=1e-6, rtol=1e-6)


def test_principal_components_rebuild_what_they_were_fitted_to():
    g = torch.Generator().manual_seed(0)
    basis, weights = torch.rand(2, 3, 4, 4, generator=g), torch.rand(50, 2, generator=g)
    normal = (torch.einsum("nk,kchw->nchw", weights, basis) * 120).round().to(torch.uint8)
    components = principal_components(normal)
    assert components.n_components_ <= 2 and VARIANCE < 1
    strange = 255 - normal[:5]
    error = [
        (principal_rebuilt(components, images) - images.float() / 127.5 + 1).square().mean().item()
        for images in (normal, strange)
    ]
    assert error[0] < 0.02 < error[1]


def test_mahalanobis_distance_of_many_gaussian_features():
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(20_000, 3, generator=g) * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([0.0, 5.0, 0.0])
    found = mahalanobis(normal, torch.tensor([[0.0, 5, 0], [3, 5, 0], [0, 9, 0], [0, 5, -1]]))
    assert found.tolist() == pytest.approx([0.0, 3.0, 2.0, 2.0], abs=0.1)
