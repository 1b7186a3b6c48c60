"""GenerativeModel: a sample depends on its seed and condition alone; sampling leaves the model as it was."""

from functools import partial

import pytest
import torch

from diffusion.codecs import Identity
from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.grids import Karras, Uniform
from diffusion.guidance import ClassifierFree
from diffusion.networks import UNet
from diffusion.parameterizations import EDM
from diffusion.samplers import ddim
from diffusion.schedulers import EDM as VarianceExploding
from diffusion.schedulers import Cosine, Learned
from tests.analytic import SAMPLERS, GaussianDenoiser, randomise

pytestmark = pytest.mark.slow

SHAPE = (1, 8, 8)


def make(sampler=SAMPLERS["ddpm"], scheduler=None, dropout: float = 0.3, guided: bool = False) -> GenerativeModel:
    options = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_size": 4, "head_channels": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 1, SHAPE[1:], classes=4, dropout=dropout, **options)
    denoiser = NetworkDenoiser(scheduler or Cosine(), EDM(), randomise(net))
    return GenerativeModel(ClassifierFree(denoiser, 2.0) if guided else denoiser, Identity(), sampler, Karras(6))


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_seed_and_label_alone(name: str, guided: bool):
    """The same 8 samples in batches of 1, 3 and 8, to rounding, which steps as wide as these multiply."""
    model = make(SAMPLERS[name], guided=guided)
    seeds, labels = list(range(100, 108)), torch.arange(8) % 4
    whole = model.sample(SHAPE, {"label": labels}, seeds=seeds)
    assert whole.shape == (8, *SHAPE) and whole.isfinite().all()
    for size in (1, 3):
        parts = [
            model.sample(SHAPE, {"label": labels[i : i + size]}, seeds=seeds[i : i + size]) for i in range(0, 8, size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=2e-4)


def test_seeds_are_reproducible_and_differ():
    model = make()
    first, again, other = (model.sample(SHAPE, seeds=seeds) for seeds in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(first, again)
    torch.testing.assert_close(first[0], other[0])
    assert (first[1] - other[1]).abs().max() > 1e-3 and (first[0] - first[1]).abs().max() > 1e-3


def test_labels_matter():
    zeros, ones = (make().sample(SHAPE, {"label": torch.tensor([label])}, seeds=[1]) for label in (0, 1))
    assert (zeros - ones).abs().max() > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_restored(training: bool):
    model = make()
    model.denoiser.train(training)
    modes = []
    model.denoiser.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    model.sample(SHAPE, seeds=[1])
    assert modes and not any(modes)
    assert all(module.training is training for module in model.denoiser.modules())


def test_a_frozen_part_stays_in_its_own_mode():
    """A denoiser in training may hold a part that is in evaluation mode, such as a frozen base."""
    model = make()
    model.denoiser.train()
    model.denoiser.network.middle.eval()
    before = {name: module.training for name, module in model.denoiser.named_modules()}
    model.sample(SHAPE, seeds=[1])
    assert {name: module.training for name, module in model.denoiser.named_modules()} == before


def test_the_mode_is_restored_after_an_error():
    def fails(*args, **kwargs):
        raise RuntimeError("on purpose")

    model = make(fails)
    model.denoiser.train()
    with pytest.raises(RuntimeError, match="on purpose"):
        model.sample(SHAPE, seeds=[1])
    assert model.denoiser.training


def test_no_gradient_is_kept():
    assert not make().sample(SHAPE, seeds=[1]).requires_grad


def test_start_has_the_variance_of_the_first_time():
    """Noise of standard deviation sigma(grid[0]), 80 on EDM's grid, within 4 standard errors."""
    starts = []

    def spy(denoiser, x, grid, cond=None, *, rng=None, on_step=None):
        starts.append(x)
        return x

    make(spy, VarianceExploding()).sample((1, 40, 40), seeds=range(10))
    assert starts[0].std().item() == pytest.approx(80, rel=4 / (2 * 16_000) ** 0.5)


def test_codec_decodes_and_gives_the_shape_of_the_noise():
    class Halving(torch.nn.Module):
        def latent_shape(self, shape):
            return (shape[0] * 2, *(side // 2 for side in shape[1:]))

        def decode(self, latents):
            return latents.mean(1, keepdim=True).repeat_interleave(2, -1).repeat_interleave(2, -2) + 7

    def identity(denoiser, x, grid, cond=None, *, rng=None, on_step=None):
        assert x.shape == (2, 2, 4, 4)
        return torch.zeros_like(x)

    model = GenerativeModel(make().denoiser, Halving(), identity, Uniform(2))
    assert torch.equal(model.sample(SHAPE, seeds=[1, 2]), torch.full((2, *SHAPE), 7.0))


def test_on_step_is_called_at_every_step():
    seen = []
    make().sample(SHAPE, seeds=[1], on_step=lambda i, x, mean: seen.append((i, x.shape, mean.shape)))
    assert seen == [(i, (1, *SHAPE), (1, *SHAPE)) for i in range(6)]


def test_gaussian_data_are_sampled():
    """1,000 seeds through 300 steps at eta = 0.5: mean and covariance of the data to 4 standard errors."""
    count, denoiser = 1000, GaussianDenoiser(Cosine())
    model = GenerativeModel(denoiser, Identity(), partial(ddim, eta=0.5), Karras(300, 0.005, 80.0))
    x, c = model.sample((3,), seeds=range(count)), denoiser.covariance
    assert ((x.mean(0) - denoiser.mean).abs() < 4 * (c.diag() / count).sqrt()).all()
    bound = 4 * ((c.diag()[:, None] * c.diag() + c**2) / count).sqrt()
    assert ((x.T.double().cov() - c).abs() < bound).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_rehearsal_asks_no_network(name):
    make(SAMPLERS[name]).rehearse()
    make(SAMPLERS[name], Learned()).rehearse()


@pytest.mark.parametrize(
    ("sampler", "said"), [(partial(ddim, eta=3.0), "eta=3"), (partial(SAMPLERS["ddpm"], variance=7), "variance=7")]
)
def test_a_rehearsal_shows_what_is_refused(sampler, said):
    with pytest.raises(UserError, match=said):
        make(sampler).rehearse()


def test_a_rehearsal_without_noise_tells_a_stochastic_sampler():
    make(ddim).rehearse(rng=None)
    with pytest.raises(ValueError, match="rng"):
        make(SAMPLERS["ddpm"]).rehearse(rng=None)
