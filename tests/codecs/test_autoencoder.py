from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from diffusion.codecs import Autoencoder, fingerprint_of, latent_statistics
from diffusion.errors import UserError
from diffusion.networks import Autoencoder as Network
from diffusion.networks import Gaussian, VectorQuantizer


class Halves(nn.Module):
    """Two latent channels of half the size, with means and standard deviations that are plain to see."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -50.0]))

    def moments(self, images):
        small = avg_pool2d(images, 2)
        return torch.cat([small * self.weight[0], small + self.weight[1], small.abs(), 3 + 0 * small], dim=1)

    def draw(self, moments, rng):
        mean, std = moments.chunk(2, dim=1)
        return mean if rng is None else mean + std * rng(mean.shape[1:])

    def decode(self, latents):
        return interpolate(latents[:, :1] / self.weight[0], scale_factor=2)

    def latent_shape(self, shape):
        return [2, shape[1] // 2, shape[2] // 2]


MEAN, STD = torch.tensor([0.5, -50.0]), torch.tensor([2.0, 0.25])


@pytest.fixture
def codec() -> Autoencoder:
    return Autoencoder(Halves(), MEAN, STD, "f" * 16)


def test_latents_are_brought_to_mean_0_and_std_1(codec):
    images, rng = torch.randn(3, 1, 4, 6), partial(noise, 3)
    moments = codec.moments(images)
    z = codec.frozen.network.draw(moments, rng)
    expected = torch.stack([(z[:, c] - MEAN[c]) / STD[c] for c in (0, 1)], dim=1)
    assert torch.equal(codec.draw(moments, rng), expected)
    assert torch.equal(codec.encode(images), codec.draw(moments, None))
    assert codec.latent_shape((1, 4, 6)) == codec.encode(images).shape[1:] == (2, 2, 3)


def noise(count, shape):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def test_decoding_undoes_encoding(codec):
    flat = interpolate(torch.randn(3, 1, 2, 3), scale_factor=2)
    torch.testing.assert_close(codec.decode(codec.encode(flat)), flat)


def test_volumes_have_channels_too():
    network = Network(1, (4, 4, 4), bottleneck=Gaussian, latent_channels=3, channels=8, multipliers=(1, 2))
    codec = Autoencoder(network, torch.arange(3.0), torch.ones(3), "f")
    images = torch.randn(2, 1, 4, 4, 4)
    assert codec.encode(images).shape == (2, *codec.latent_shape((1, 4, 4, 4))) == (2, 3, 2, 2, 2)
    assert codec.decode(codec.encode(images)).shape == images.shape
    with pytest.raises(UserError, match="multiple of 2"):
        codec.latent_shape((1, 4, 5, 4))


def test_it_is_frozen_exact_and_no_part_of_its_owner(codec):
    assert not codec.state_dict() and not list(codec.parameters()) and codec.fingerprint == "f" * 16
    network = Network(1, (8, 8), bottleneck=VectorQuantizer, latent_channels=2, channels=8, multipliers=(1, 2))
    codec = Autoencoder(network, torch.zeros(2), torch.ones(2), "f").train()
    images = torch.randn(2, 1, 8, 8)
    moments, restored = codec.moments(images), codec.decode(codec.encode(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.moments(images), moments) and moments.dtype is torch.float32
        assert torch.equal(codec.decode(codec.encode(images)), restored)
    assert not moments.requires_grad and not restored.requires_grad and network.bottleneck.updates == 0


def test_it_moves_with_mean_and_std(codec):
    codec.to("meta")
    assert {codec.mean.device, codec.std.device, codec.frozen.network.weight.device} == {torch.device("meta")}


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ([0.0, 1.0], [1.0, 0.0], "collapsed: 1 of its 2"),
        ([3.0, 100.0], [1e-9, 1e-6], "collapsed: 2 of its 2"),
        ([0.0, 0.0], [-1.0, 1.0], "collapsed"),
        ([0.0, 0.0], [1.0, float("nan")], "diverged"),
        ([0.0, float("inf")], [1.0, 1.0], "diverged"),
    ],
)
def test_useless_latents_are_refused(mean, std, said):
    with pytest.raises(UserError, match=said) as caught:
        Autoencoder(Halves(), torch.tensor(mean), torch.tensor(std), "f")
    assert "\n" not in str(caught.value)


def test_statistics_are_those_of_many_draws():
    torch.manual_seed(0)
    images = torch.rand(24, 1, 8, 8) * torch.linspace(-1, 1, 24).reshape(-1, 1, 1, 1)
    network = Halves().eval()
    mean, std = latent_statistics(network, images.split(7))
    repeats = 200
    moments = network.moments(images).detach().repeat(repeats, 1, 1, 1)
    z = network.draw(moments, lambda shape: torch.randn(len(moments), *shape)).double().transpose(0, 1).flatten(1)
    # 4 standard errors of mean and std of n values, that is std / sqrt(n) and about std / sqrt(2 n); the first
    # channel's tails are heavier, which doubles the second.
    error = std / z.shape[1] ** 0.5
    assert ((z.mean(1) - mean).abs() < 4 * error).all() and ((z.std(1) - std).abs() < 6 * error).all()
    assert mean.dtype is std.dtype is torch.float64 and mean.shape == (2,)


def test_statistics_do_not_depend_on_the_batches_and_bear_a_large_mean():
    network = Halves().eval()
    network.weight.data[1] = 1e6
    images = torch.randn(10, 1, 4, 4)
    whole = latent_statistics(network, [images])
    torch.testing.assert_close(latent_statistics(network, images.split(3)), whole, rtol=1e-12, atol=0)
    mean, std = network.moments(images).detach().double().chunk(2, dim=1)
    expected = (mean.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))).sqrt()
    torch.testing.assert_close(whole[1], expected, rtol=1e-6, atol=0)


def test_a_quantiser_has_no_noise_to_add():
    torch.manual_seed(0)
    network = Network(1, (8, 8), bottleneck=VectorQuantizer, latent_channels=3, channels=8, multipliers=(1, 2)).eval()
    images = torch.randn(6, 1, 8, 8)
    z = network.moments(images).detach().double().transpose(0, 1).flatten(1)
    mean, std = latent_statistics(network, images.split(4))
    torch.testing.assert_close(mean, z.mean(1), rtol=1e-9, atol=1e-12)
    # Batches of another size may round the moments otherwise.
    torch.testing.assert_close(std, z.std(1, correction=0), rtol=1e-6, atol=0)


def test_latents_that_all_agree_are_found_collapsed():
    flat = Network(1, (8, 8), bottleneck=VectorQuantizer, latent_channels=2, channels=8, multipliers=(1, 2)).eval()
    nn.init.zeros_(flat.encoder.output.weight)
    nn.init.constant_(flat.encoder.output.bias, 0.3)
    with pytest.raises(UserError, match="collapsed: 2 of its 2"):
        Autoencoder(flat, *latent_statistics(flat, torch.randn(50, 1, 8, 8).split(7)), "f")


def test_the_fingerprint_goes_by_content():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1), "c": torch.ones(2).bfloat16()}
    original = fingerprint_of(tensors)
    assert len(original) == 16 and int(original, 16) >= 0
    assert fingerprint_of(dict(reversed(tensors.items()))) == original
    assert fingerprint_of({**tensors, "a": tensors["a"].T.contiguous().T}) == original
    changes = [
        {"a": tensors["a"].reshape(3, 2)},
        {"a": tensors["a"].double()},
        {"a": tensors["a"] + torch.tensor([0, 0, 1e-5])},
        {"b": torch.tensor(2)},
        {"c": torch.tensor([1, 1.0078125]).bfloat16()},
        {"c": torch.ones(2).half()},
        {"d": torch.empty(0, 3)},
    ]
    others = [fingerprint_of({**tensors, **change}) for change in changes]
    renamed = fingerprint_of({"A" if name == "a" else name: value for name, value in tensors.items()})
    assert len({original, renamed, *others}) == 2 + len(changes)
