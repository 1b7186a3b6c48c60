"""The autoencoder: shapes of every kind, what fits and what does not, its gradients, and that it learns."""

from functools import partial

import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import Autoencoder, Bottleneck, Gaussian, Reconstruction, VectorQuantizer
from tests.analytic import randomise

QUANTISED = partial(VectorQuantizer, codes=16)
BOTTLENECKS = {"gaussian": Gaussian, "quantised": QUANTISED}


def make(size=(8, 8), in_channels=1, bottleneck=Gaussian, silent=False, **options) -> Autoencoder:
    """A small autoencoder in evaluation mode, without silent layers unless `silent`."""
    small = {"latent_channels": 3, "channels": 8, "multipliers": (1, 2)} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Autoencoder(in_channels, size, bottleneck, **small).eval()
        return net if silent else randomise(net)


def image(size=(8, 8), channels=1, count=2) -> torch.Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


def noise(count=2):
    """Standard normal noise, the same at each call."""
    return lambda shape: torch.randn(count, *shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", BOTTLENECKS.values(), ids=BOTTLENECKS)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((8, 8), {}),
        ((28, 28), {"multipliers": (1, 2, 4), "attention": True}),
        ((12, 8), {"multipliers": (1, 1, 2), "blocks": 2}),
        ((5, 7), {"multipliers": (1,)}),
        ((4, 6, 8), {}),
        ((8, 4, 4), {"multipliers": (1, 1, 1), "attention": True}),
    ],
)
def test_shapes(size: tuple[int, ...], options: dict, channels: int, bottleneck: type[Bottleneck]):
    """Two and three dimensions and any channels: every method says the shapes that it should."""
    net = make(size, channels, bottleneck, **options)
    images = image(size, channels)
    latent_shape = net.latent_shape((channels, *size))
    assert latent_shape == (3, *(side // net.factor for side in size))
    moments = net.moments(images)
    assert moments.shape == (2, 6 if bottleneck is Gaussian else 3, *latent_shape[1:])
    latents = net.draw(moments, noise())
    assert latents.shape == (2, *latent_shape)
    assert net.decode(latents).shape == images.shape
    found = net(images, noise())
    assert isinstance(found, Reconstruction)
    assert found.images.shape == images.shape and found.images.isfinite().all() and found.images.std() > 1e-3
    assert found.penalty.shape == (2,) and found.penalty.dtype == torch.float32
    assert all(value.shape == () and not value.requires_grad for value in found.statistics.values())


@pytest.mark.parametrize("rng", [None, noise()], ids=["mean", "drawn"])
@pytest.mark.parametrize("bottleneck", BOTTLENECKS.values(), ids=BOTTLENECKS)
def test_the_parts_make_the_whole(bottleneck: type[Bottleneck], rng):
    """decode(draw(moments)) is what forward answers."""
    net, images = make(bottleneck=bottleneck), image()
    expected = net.decode(net.draw(net.moments(images), rng))
    torch.testing.assert_close(net(images, rng).images, expected, rtol=1e-5, atol=1e-5)


def test_moments_are_not_random_and_draws_are():
    net, images = make(), image()
    moments = net.moments(images)
    assert torch.equal(net.moments(images), moments)
    assert (net.draw(moments, noise()) - net.draw(moments, None)).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(8, 8), (4, 6, 8)])
def test_images_of_a_batch_are_independent(size: tuple[int, ...]):
    net, images = make(size, attention=True), image(size)
    alone = [net(images[i : i + 1], None) for i in range(2)]
    together = net(images, None)
    torch.testing.assert_close(together.images, torch.cat([found.images for found in alone]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.penalty, torch.cat([found.penalty for found in alone]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 8, 8), ["3 channels", "autoencoder of 1"]),
        ((1, 8, 8, 8), ["8x8x8", "2-D"]),
        ((1, 30, 8), ["30x8", "multiple of 4", "28 or 32 in place of 30"]),
        ((1, 30, 30), ["30x30", "take 28 or 32 in place of 30;"]),
        ((1, 9, 7), ["8 or 12 in place of 9, 4 or 8 in place of 7"]),
        ((1, 3, 8), ["take 4 in place of 3"]),
    ],
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], said: list[str]):
    with pytest.raises(UserError) as caught:
        make(multipliers=(1, 1, 2)).latent_shape(shape)
    assert all(words in str(caught.value) for words in said) and "\n" not in str(caught.value)


def test_a_size_that_does_not_fit_is_refused_at_once():
    with pytest.raises(UserError, match="28 or 32 in place of 30"):
        make((30, 30), multipliers=(1, 2, 4))


@pytest.mark.parametrize(
    "options", [{"channels": 0}, {"blocks": 0}, {"latent_channels": 0}, {"multipliers": ()}, {"multipliers": (1, 0)}]
)
def test_values_out_of_range_are_refused(options: dict):
    (name,) = options
    with pytest.raises(UserError, match=f"model.network.{name}=") as caught:
        make(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS.values(), ids=BOTTLENECKS)
@pytest.mark.parametrize("size", [(8, 8), (4, 4, 8)])
def test_every_parameter_learns(size: tuple[int, ...], bottleneck: type[Bottleneck]):
    """After the layers that start at zero have moved."""
    net = make(size, 2, bottleneck, attention=True).train()
    found = net(image(size, 2), noise())
    (found.images.square().mean() + found.penalty.mean()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        rows = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[None]
        assert rows.any(1).all(), name


def test_the_last_layer_makes_the_images():
    """Twice its weight and bias, twice the images; and it is a parameter that learns."""
    net, images = make(in_channels=3), image(channels=3)
    before = net(images, None).images
    assert net.last_layer.shape[0] == 3 and any(net.last_layer is parameter for parameter in net.parameters())
    with torch.no_grad():
        net.last_layer.mul_(2)
        net.decoder.output.bias.mul_(2)
    torch.testing.assert_close(net(images, None).images, 2 * before)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS.values(), ids=BOTTLENECKS)
def test_bfloat16_autocast(bottleneck: type[Bottleneck]):
    """Latents and penalty are float32, close to those without; and the gradients are finite."""
    net, images = make(bottleneck=bottleneck), image()
    plain = net(images, noise())
    with torch.autocast("cpu", torch.bfloat16):
        found = net.train()(images, noise())
        moments = net.moments(images)
        assert net.draw(moments, noise()).dtype == moments.dtype == torch.float32
        assert net.decode(net.draw(moments, noise())).isfinite().all()
    assert found.penalty.dtype == torch.float32
    if bottleneck is Gaussian:
        torch.testing.assert_close(found.images.float(), plain.images, rtol=0.1, atol=0.1)
        torch.testing.assert_close(found.penalty, plain.penalty, rtol=0.1, atol=0.1)
    (found.images.float().square().mean() + found.penalty.mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_state_holds_parameters_and_the_codebook():
    parameters = {name for name, _ in make().named_parameters()}
    assert set(make().state_dict()) == parameters
    kept = set(make(bottleneck=QUANTISED).state_dict()) - parameters
    assert kept == {f"bottleneck.{name}" for name in ("codebook", "counts", "sums", "updates")}


@pytest.mark.slow
@pytest.mark.parametrize(("bottleneck", "bound"), [(Gaussian, 0.1), (QUANTISED, 0.05)], ids=BOTTLENECKS)
def test_a_few_images_are_learned_by_heart(bottleneck: type[Bottleneck], bound: float):
    """Four images of variance 1 come back to a few percent of it."""
    net = make(bottleneck=bottleneck, silent=True, latent_channels=8, channels=16).train()
    images, g = image(count=4), torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(120):
        found = net(images, lambda shape: torch.randn(4, *shape, generator=g))
        ((found.images - images).square().mean() + 1e-4 * found.penalty.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (net.eval()(images, None).images - images).square().mean() < bound
