"""Classifier-free guidance against the conditional and unconditional answers it is made of."""

import pytest
import torch
from torch import Tensor

from diffusion.denoiser import Denoiser, NetworkDenoiser, Prediction
from diffusion.errors import UserError
from diffusion.guidance import ClassifierFree
from diffusion.parameterizations import X0, V
from diffusion.samplers import ddim
from diffusion.schedulers import Cosine, Flow
from tests.analytic import times

COND = {"label": torch.tensor([0, 1, 2])}


class ByLabel(torch.nn.Module):
    """Answers x / 2 plus the label, or x / 2 - 5 without one; counts its evaluations."""

    def __init__(self):
        super().__init__()
        self.evaluations = 0

    def forward(self, x: Tensor, c_noise: Tensor, cond=None) -> Tensor:
        self.evaluations += len(x)
        if not cond:
            return x / 2 - 5
        drop = cond.get("drop", torch.zeros(len(x), dtype=torch.bool))
        return x / 2 + torch.where(drop, -5.0, cond["label"].float())[:, None, None, None]


def make(scheduler=None, parameterization=None) -> NetworkDenoiser:
    return NetworkDenoiser(scheduler or Cosine(), parameterization or V(), ByLabel())


def image() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("t", [times(0.4)[0], times(0.2, 0.4, 0.9)], ids=["one time", "a time each"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.5, 4.0, -1.0])
def test_linear_in_the_scale(scale: float, t: Tensor):
    """D_u + scale (D_c - D_u): unconditional at 0, conditional at 1."""
    denoiser, x = make(), image()
    conditional, unconditional = denoiser(x, t, COND), denoiser(x, t, None)
    guided = ClassifierFree(denoiser, scale)(x, t, COND)
    torch.testing.assert_close(guided, unconditional + scale * (conditional - unconditional), rtol=1e-5, atol=1e-5)


def test_scale_one_is_the_conditional_model():
    """To the bit, and for one evaluation."""
    denoiser, x, t = make(), image(), times(0.4)[0]
    expected = denoiser(x, t, COND)
    denoiser.network.evaluations = 0
    assert torch.equal(ClassifierFree(denoiser, 1.0)(x, t, COND), expected)
    assert denoiser.network.evaluations == 3


@pytest.mark.parametrize(
    ("low", "high", "inside"),
    [
        (0.5, 2.0, True),
        (1.0, 2.0, False),
        (0.5, 1.0, True),
        (1.5, 3.0, False),
        (0.1, 0.9, False),
        (0.0, 1e9, True),
    ],
)
def test_interval(low: float, high: float, inside: bool):
    """At sigma / alpha = 1 exactly: guided where low < 1 <= high, else conditional for one evaluation."""
    denoiser, x, t = make(Flow(), X0()), image(), times(0.5)[0]
    conditional, unconditional = denoiser(x, t, COND), denoiser(x, t, None)
    denoiser.network.evaluations = 0
    guided = ClassifierFree(denoiser, 3.0, low, high)(x, t, COND)
    assert denoiser.network.evaluations == (6 if inside else 3)
    expected = 3 * conditional - 2 * unconditional if inside else conditional
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)


def test_interval_in_a_sampler():
    """Ten steps, of which those with 0.3 < sigma / alpha <= 2 cost two evaluations a sample."""
    denoiser = make()
    grid = torch.linspace(1, 0, 11, dtype=torch.float64)
    levels = denoiser.scheduler.sigma(grid[:-1]) / denoiser.scheduler.alpha(grid[:-1])
    doubled = int(((levels > 0.3) & (levels <= 2)).sum())
    assert 0 < doubled < 10
    ddim(ClassifierFree(denoiser, 2.0, 0.3, 2.0), image(), grid, COND)
    assert denoiser.network.evaluations == 3 * (10 + doubled)


def test_at_zero_terminal_snr():
    """Where sigma / alpha is infinite the default interval holds it."""
    denoiser, x, t = make(Flow(), X0()), image(), times(1)[0]
    guided = ClassifierFree(denoiser, 2.0)(x, t, COND)
    expected = 2 * denoiser(x, t, COND) - denoiser(x, t, None)
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_samples_at_times_on_both_sides_are_guided_each_by_its_own(rescale: float):
    denoiser, x, t = make(), image(), times(0.1, 0.45, 0.9)
    guided = ClassifierFree(denoiser, 3.0, 0.5, 1.0, rescale)
    levels = denoiser.scheduler.sigma(t) / denoiser.scheduler.alpha(t)
    assert ((levels > 0.5) & (levels <= 1.0)).tolist() == [False, True, False]
    alone = [guided(x[i : i + 1], t[i], {"label": COND["label"][i : i + 1]}) for i in range(3)]
    torch.testing.assert_close(guided(x, t, COND), torch.cat(alone))
    denoiser.network.evaluations = 0
    assert torch.equal(guided(x, t[[0, 2, 2]], COND), denoiser(x, t[[0, 2, 2]], COND))
    assert denoiser.network.evaluations == 3 + 3


@pytest.mark.parametrize("cond", [None, {}])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_without_condition_is_refused(scale: float, cond):
    with pytest.raises(UserError, match="guidance=none"):
        ClassifierFree(make(), scale)(image(), times(0.5)[0], cond)


def test_multi_hot_labels_and_the_callers_condition_are_kept():
    cond = {"label": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])}
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, c_noise, cond=None):
            seen.append(cond)
            return x

    ClassifierFree(NetworkDenoiser(Cosine(), V(), Network()), 2.0)(image(), times(0.5)[0], cond)
    assert set(cond) == {"label"}
    assert torch.equal(seen[0]["label"], torch.cat([cond["label"]] * 2))
    assert seen[0]["drop"].tolist() == [False] * 3 + [True] * 3


def deviation(images: Tensor) -> Tensor:
    return images.std((1, 2, 3), correction=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_brings_back_the_deviation_of_the_conditional_answer(share: float):
    """All of it at 1; between, the factor is mixed: Lin et al. 2024, eq. 15 and 16, on the expected image."""
    t, x = times(0.4)[0], image()

    class Bolder(ByLabel):
        """With its label it answers in twice the contrast."""

        def forward(self, x, c_noise, cond=None):
            kept = 1 - cond["drop"].float() if cond and "drop" in cond else torch.full((len(x),), float(bool(cond)))
            return x * (1 + kept)[:, None, None, None]

    denoiser = NetworkDenoiser(Cosine(), X0(), Bolder())
    conditional = denoiser(x, t, COND)
    plain = ClassifierFree(denoiser, 3.0)(x, t, COND)
    found = ClassifierFree(denoiser, 3.0, rescale=share)(x, t, COND)
    factor = share * deviation(conditional) / deviation(plain) + 1 - share
    torch.testing.assert_close(found, plain * factor[:, None, None, None])
    torch.testing.assert_close(deviation(plain), 2 * deviation(conditional), rtol=1e-4, atol=0)
    if share == 1:
        torch.testing.assert_close(deviation(found), deviation(conditional))


def test_an_image_of_one_value_cannot_be_rescaled_and_stays():
    denoiser, asked = make(parameterization=X0()), (torch.ones(3, 2, 4, 4), times(0.4)[0], COND)
    torch.testing.assert_close(
        ClassifierFree(denoiser, 2.0, rescale=1.0)(*asked), ClassifierFree(denoiser, 2.0)(*asked)
    )


def test_a_learned_covariance_is_that_of_the_conditional_answer():
    class WithCovariance(Denoiser):
        scheduler = Cosine()

        def predict(self, x_t, t, cond=None):
            return Prediction(x_t, torch.where(cond["drop"], -1.0, 1.0)[:, None, None, None].expand(x_t.shape))

    for scale in (0.5, 3.0):
        found = ClassifierFree(WithCovariance(), scale).predict(image(), times(0.4)[0], COND)
        assert torch.equal(found.fraction, torch.ones_like(found.mean))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"scale": float("nan")}, "guidance.scale=nan"),
        ({"scale": float("-inf")}, "guidance.scale=-inf"),
        ({"rescale": 1.5}, "guidance.rescale=1.5"),
        ({"rescale": -0.1}, "guidance.rescale=-0.1"),
        ({"low": 1.0, "high": 1.0}, "guidance.low=1.0 and guidance.high=1.0"),
        ({"low": -0.5}, "guidance.low=-0.5"),
        ({"high": float("nan")}, "guidance.high=nan"),
    ],
)
def test_keys_out_of_range_are_refused(keys, said: str):
    with pytest.raises(UserError, match=said):
        ClassifierFree(make(), **keys)
