"""Classifier guidance against Gaussian classes, where p(label | x_t) and each class's denoiser have closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffusion.denoiser import Denoiser, Prediction
from diffusion.errors import UserError
from diffusion.guidance import ClassifierGuidance, NetworkClassifier, NoisyClassifier
from diffusion.samplers import ddim, ddpm, heun
from diffusion.schedulers import EDM, Cosine, Flow, Linear
from tests.analytic import EVERY_SCHEDULER, GaussianDenoiser, times

PRIOR = (0.5, 0.2, 0.3)
MEANS = ((0.4, -0.3, 0.1), (-0.5, 0.2, 0.3), (0.1, 0.6, -0.4))
COVARIANCES = (
    ((0.30, 0.10, 0.00), (0.10, 0.20, -0.05), (0.00, -0.05, 0.05)),
    ((0.10, 0.00, 0.02), (0.00, 0.25, 0.00), (0.02, 0.00, 0.15)),
    ((0.20, -0.08, 0.0), (-0.08, 0.1, 0.03), (0.0, 0.03, 0.3)),
)


def of_class(scheduler, k: int) -> GaussianDenoiser:
    return GaussianDenoiser(scheduler, MEANS[k], COVARIANCES[k])


class Exact(NoisyClassifier):
    """log pi_k + log N(x_t; alpha m_k, alpha^2 C_k + sigma^2), for x_t (B, 3) float64."""

    def forward(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        means, covariances = (torch.tensor(values, dtype=torch.float64) for values in (MEANS, COVARIANCES))
        alpha, sigma = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        spread = alpha[..., None, None] ** 2 * covariances + sigma[..., None, None] ** 2 * torch.eye(3)
        normal = torch.distributions.MultivariateNormal(alpha[..., None] * means, spread)
        return torch.tensor(PRIOR, dtype=torch.float64).log() + normal.log_prob(x_t[:, None])


class Mixture(Denoiser):
    """The optimal denoiser of all classes together, which is told no class; it counts its evaluations."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler, self.exact, self.evaluations = scheduler, Exact(), 0
        self.classes = [of_class(scheduler, k) for k in range(3)]

    def predict(self, x_t: Tensor, t: Tensor, cond=None) -> Prediction:
        self.evaluations += 1
        share = self.exact(x_t, self.scheduler.alpha(t), self.scheduler.sigma(t)).softmax(1)
        means = torch.stack([one.predict(x_t, t).mean for one in self.classes], 1)
        return Prediction((share[..., None] * means).sum(1))


def points(n: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(k: int, n: int = 7) -> dict[str, Tensor]:
    return {"label": torch.full((n,), k)}


@pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER)
@pytest.mark.parametrize("k", range(3))
def test_scale_one_with_exact_parts_is_the_denoiser_of_the_class(scheduler, k):
    guided = ClassifierGuidance(Mixture(scheduler), Exact())
    for t in times(0.02, 0.1, 0.3, 0.5, 0.8):
        x = points() * (scheduler.sigma(t) + scheduler.alpha(t))
        wanted = of_class(scheduler, k)(x, t)
        torch.testing.assert_close(guided(x, t, labelled(k)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0])
def test_what_is_added_is_the_analytic_score_of_the_class(scale):
    """grad log p(k | x_t) is the class's score less that of all, each (alpha D - x_t) / sigma^2; a time each."""
    scheduler, t = Cosine(), times(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    mixture, x, label = Mixture(scheduler), points(), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    alpha, sigma = scheduler.alpha(t)[:, None], scheduler.sigma(t)[:, None]
    plain = torch.cat([mixture(x[i : i + 1], t[i]) for i in range(7)])
    ours = torch.cat([of_class(scheduler, int(label[i]))(x[i : i + 1], t[i]) for i in range(7)])
    score = [(alpha * mean - x) / sigma**2 for mean in (ours, plain)]
    wanted = plain + scale * sigma**2 / alpha * (score[0] - score[1])

    class Apart(Mixture):
        def predict(self, x_t, t, cond=None):
            return Prediction(plain)

    found = ClassifierGuidance(Apart(scheduler), Exact(), scale)(x, t, {"label": label})
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [Cosine(), EDM(), Linear()], ids=["cosine", "edm", "linear"])
@pytest.mark.parametrize("sampler", [ddim, heun])
def test_a_deterministic_sampler_draws_the_class(scheduler, sampler):
    """Its map is affine, for the class is Gaussian: where 0 and the axes go says the mean and covariance it draws."""
    grid = scheduler.time(torch.linspace(-8, 9, 200 if sampler is ddim else 60, dtype=torch.float64))
    grid = torch.cat([grid, times(0)])
    probes = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double() * scheduler.sigma(grid[0])
    k = 1
    found = sampler(ClassifierGuidance(Mixture(scheduler), Exact()), probes, grid, labelled(k, 4))
    matrix = found[1:] - found[0]
    # The start is taken as pure noise, which leaves e^-8 of the signal's share out.
    torch.testing.assert_close(found[0], torch.tensor(MEANS[k], dtype=torch.float64), rtol=0, atol=0.02)
    torch.testing.assert_close(
        matrix.T @ matrix, torch.tensor(COVARIANCES[k], dtype=torch.float64), rtol=0.05, atol=0.004
    )


@pytest.mark.slow
def test_ancestral_sampling_draws_the_class():
    """2,000 samples: mean and covariance within four standard errors."""
    scheduler, n, k = Cosine(), 2_000, 2
    g = torch.Generator().manual_seed(0)

    def rng(shape):
        return torch.randn(n, *shape, generator=g, dtype=torch.float64)

    grid = torch.cat([scheduler.time(torch.linspace(-8, 9, 250, dtype=torch.float64)), times(0)])
    x = rng((3,)) * scheduler.sigma(grid[0])
    found = ddpm(ClassifierGuidance(Mixture(scheduler), Exact()), x, grid, labelled(k, n), rng=rng)
    mean, covariance = (torch.tensor(values[k], dtype=torch.float64) for values in (MEANS, COVARIANCES))
    spread = covariance.diag()
    assert ((found.mean(0) - mean).abs() < 4 * (spread / n).sqrt()).all()
    assert ((found.T.cov() - covariance).abs() < 4 * ((covariance**2 + spread[:, None] * spread) / n).sqrt()).all()
    # So many samples without guidance are far from it.
    assert (ddpm(Mixture(scheduler), x, grid, rng=rng).mean(0) - mean).abs().max() > 0.1


@pytest.mark.parametrize(
    ("scale", "low", "high", "noisiest", "t"),
    [
        (0.0, 0.0, math.inf, math.inf, 0.5),
        (2.0, 0.0, 0.9, math.inf, 0.5),
        (2.0, 1.0, 2.0, math.inf, 0.5),
        (2.0, 0.0, math.inf, 0.9, 0.5),
        (2.0, 0.0, math.inf, math.inf, 1.0),
    ],
    ids=["scale 0", "above the interval", "below it", "noisier than the classifier knows", "alpha = 0"],
)
def test_elsewhere_it_is_the_denoiser_to_the_bit(scale, low, high, noisiest, t):
    """Under Flow, sigma / alpha at t = 0.5 is 1; and the classifier is not asked."""

    class Unasked(Exact):
        def forward(self, *arguments):
            raise AssertionError("asked")

    classifier = Unasked()
    classifier.noisiest = noisiest
    guided, x = ClassifierGuidance(Mixture(Flow()), classifier, scale, low, high), points()
    assert torch.equal(guided(x, times(t)[0], labelled(1)), Mixture(Flow())(x, times(t)[0]))


def test_inside_the_interval_it_guides():
    guided, x, t = ClassifierGuidance(Mixture(Flow()), Exact(), 1.0, 0.9, 1.0), points(), times(0.5)[0]
    torch.testing.assert_close(guided(x, t, labelled(1)), of_class(Flow(), 1)(x, t), rtol=1e-5, atol=1e-6)


def test_samples_at_times_on_both_sides_of_the_interval_are_guided_each_by_its_own():
    class Linear(Denoiser):
        scheduler = Flow()

        def predict(self, x_t, t, cond=None):
            return Prediction(x_t / 2)

    guided = ClassifierGuidance(Linear(), NetworkClassifier(Linear3(), 0.5), 2.0, 0.5, 2.0)
    x, t = points().float()[:4], times(0.2, 0.5, 0.6, 0.9)
    found = guided(x, t, labelled(1, 4))
    alone = torch.cat([guided(x[i : i + 1], t[i], labelled(1, 1)) for i in range(4)])
    torch.testing.assert_close(found, alone)
    assert [torch.equal(found[i], x[i] / 2) for i in range(4)] == [True, False, False, True]


@pytest.mark.parametrize("cond", [None, {}, {"image": torch.zeros(7)}])
def test_without_a_class_it_is_refused(cond):
    with pytest.raises(UserError, match="none is asked for"):
        ClassifierGuidance(Mixture(Flow()), Exact())(points(), times(0.5)[0], cond)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"scale": math.nan}, "guidance.scale=nan"),
        ({"scale": math.inf}, "guidance.scale=inf"),
        ({"low": 2.0, "high": 1.0}, "guidance.low=2.0 and guidance.high=1.0"),
        ({"low": -1.0}, "guidance.low=-1.0"),
    ],
)
def test_keys_out_of_range_are_refused(keys, said):
    with pytest.raises(UserError, match=said):
        ClassifierGuidance(Mixture(Flow()), Exact(), **keys)


class Linear3(nn.Module):
    """Logits that are linear in the network's input, and know the noise level."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layer(x) + c_noise[:, None]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_samplers_may_forbid_gradients_and_parameters_get_none(mode):
    """Under Lightning's inference mode all tensors but the weights are of a kind that autograd refuses."""
    network, t = Linear3(), 0.4
    guided = ClassifierGuidance(GaussianDenoiser(Cosine()), NetworkClassifier(network, 0.5))
    with mode():
        found = guided(points().float(), times(t)[0], labelled(1))
    assert network.layer.weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(found, guided(points().float(), times(t)[0], labelled(1)))
    assert not torch.equal(found, GaussianDenoiser(Cosine())(points().float(), times(t)[0]))


def test_it_can_be_differentiated_itself():
    """As exact likelihoods and posterior sampling do: its Jacobian is that of the class's denoiser."""
    scheduler, t = Cosine(), times(0.4)[0]
    guided, wanted = ClassifierGuidance(Mixture(scheduler), Exact()), of_class(scheduler, 2)
    x = points(1)
    found = torch.autograd.functional.jacobian(lambda x: guided(x, t, labelled(2, 1)), x)
    torch.testing.assert_close(
        found, torch.autograd.functional.jacobian(lambda x: wanted(x, t), x), rtol=1e-4, atol=1e-5
    )


def test_a_learned_covariance_is_left_as_it_is():
    class WithCovariance(Mixture):
        def predict(self, x_t, t, cond=None):
            return super().predict(x_t, t, cond)._replace(fraction=x_t / 3)

    x, t = points(), times(0.5)[0]
    assert torch.equal(ClassifierGuidance(WithCovariance(Flow()), Exact()).predict(x, t, labelled(0)).fraction, x / 3)


def test_a_network_sees_the_same_image_under_every_scheduler():
    """The logits are a function of x_t / alpha and sigma / alpha alone."""
    seen = []

    class Network(nn.Module):
        def forward(self, x, c_noise):
            seen.append((x, c_noise))
            return x[:, :2]

    classifier, x = NetworkClassifier(Network(), sd=0.7), points().float()
    for scheduler in (EDM(), Cosine(), Flow(), Linear()):
        t = scheduler.time(times(1.3)[0])
        classifier(x * scheduler.alpha(t).float(), scheduler.alpha(t), scheduler.sigma(t))
    for x, c_noise in seen[1:]:
        torch.testing.assert_close(x, seen[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(c_noise, seen[0][1], rtol=1e-5, atol=1e-6)


def test_several_classes_may_hold_at_once():
    """log p of every label by itself; an index asks for that class alone, as the networks of diffusion models do."""
    classifier = NetworkClassifier(nn.Identity(), 0.5, multi_label=True)
    logits, hot = torch.tensor([[0.3, -1.0, 2.0], [0.0, 1.0, -3.0]]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    p = torch.sigmoid(logits)
    wanted = (hot * p.log() + (1 - hot) * (1 - p).log()).sum(1)
    torch.testing.assert_close(classifier.log_likelihood(logits, hot), wanted)
    torch.testing.assert_close(classifier.log_likelihood(logits[1:], torch.tensor([1])), wanted[1:])
    assert classifier.right(logits, hot).tolist() == [1.0, 1.0]
    torch.testing.assert_close(classifier.right(logits, 1 - hot), torch.zeros(2))
