"""Completions: what is hidden is never looked at, and what is known stays."""

import pytest
import torch

from diffusion.codecs import Identity
from diffusion.denoiser import NetworkDenoiser
from diffusion.generative import GenerativeModel
from diffusion.grids import Karras
from diffusion.networks import UNet
from diffusion.operators import unknown
from diffusion.parameterizations import EDM
from diffusion.samplers import ddpm, dpmpp_2m
from diffusion.schedulers import EDM as VarianceExploding
from diffusion.tasks.inpaint import biharmonic, covered, filled, inpaint
from tests.analytic import randomise

SHAPE = (1, 8, 8)


class Halving(Identity):
    """Latents of half the size: means of blocks, and the blocks again."""

    def moments(self, images):
        return torch.nn.functional.avg_pool2d(images, 2)

    def decode(self, latents):
        return latents.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def latent_shape(self, shape):
        return (shape[0], *(side // 2 for side in shape[1:]))


def model(codec, sampler=ddpm) -> GenerativeModel:
    size = codec.latent_shape(SHAPE)[1:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 1, size, channels=8, multipliers=(1, 2), blocks=1, attention_size=4, head_channels=8)
    return GenerativeModel(NetworkDenoiser(VarianceExploding(), EDM(), randomise(net)), codec, sampler, Karras(5))


@pytest.mark.parametrize("codec", [Identity(), Halving()], ids=["pixels", "latents"])
@pytest.mark.parametrize("sampler", [ddpm, dpmpp_2m])
def test_what_is_hidden_is_never_looked_at(codec, sampler):
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hidden = unknown("center", (8, 8))[None, None].expand(3, 1, 8, 8)
    generative, options = model(codec, sampler), {"times": 2, "stride": 2}
    found = inpaint(generative, images, hidden, seeds=[1, 2, 3], **options)
    other = inpaint(generative, torch.where(hidden, -images, images), hidden, seeds=[1, 2, 3], **options)
    assert torch.equal(found, other) and found.isfinite().all()
    if isinstance(codec, Halving):
        # The blocks that the hole does not touch come back as they were encoded.
        found, images = codec.moments(found), codec.moments(images)
        hidden = ~covered(~hidden, (4, 4))
    torch.testing.assert_close(found[~hidden], images[~hidden])
    assert (found[hidden] - images[hidden]).abs().mean() > 0.05


def test_a_completion_depends_on_its_own_seed_image_and_mask_alone():
    g = torch.Generator().manual_seed(0)
    images = torch.rand(4, *SHAPE, generator=g) * 2 - 1
    hidden = torch.stack([unknown("random", (8, 8), 0.5, g) for _ in range(4)])[:, None]
    whole = inpaint(model(Identity()), images, hidden, seeds=range(4), times=2)
    alone = inpaint(model(Identity()), images[2:3], hidden[2:3], seeds=[2], times=2)
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-4, atol=2e-4)
    other = inpaint(model(Identity()), images[2:3], hidden[2:3], seeds=[9], times=2)
    assert (other - alone).abs().max() > 0.01


@pytest.mark.parametrize("size", [(9, 12), (5, 6, 7)])
def test_a_hole_is_filled_from_its_border(size):
    images = torch.full((1, 2, *size), 0.3)
    hidden = unknown("center", size, 0.1)[None, None]
    torch.testing.assert_close(filled(torch.where(hidden, 9.0, images), hidden), images)
    ramp = torch.linspace(-1, 1, size[-1]).expand(1, 1, *size)
    found = filled(torch.where(hidden, 9.0, ramp), hidden)
    assert torch.equal(found[~hidden], ramp[~hidden]) and found.abs().max() <= 1
    assert (found - ramp).abs().max() < 0.5


def test_a_coarse_place_is_known_where_all_of_it_is():
    known = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    known[..., 3, 5] = False
    found = covered(known, (4, 4))
    assert found.sum() == 15 and not found[0, 0, 1, 2]


def test_biharmonic_continues_a_ramp():
    ramp = torch.linspace(0, 255, 16).round().to(torch.uint8).expand(1, 3, 16, 16).contiguous()
    hidden = unknown("center", (16, 16))[None, None]
    found = biharmonic(torch.where(hidden, 0, ramp), hidden)
    assert (found.int() - ramp.int()).abs().max() <= 2 and torch.equal(
        found[~hidden.expand_as(ramp)], ramp[~hidden.expand_as(ramp)]
    )
