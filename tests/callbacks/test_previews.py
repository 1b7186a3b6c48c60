"""Previews are pictures of the averaged weights, and leave no trace in the training."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.callbacks import EMA, Budget, Previews
from diffusion.codecs import Identity
from diffusion.denoiser import NetworkDenoiser
from diffusion.generative import GenerativeModel
from diffusion.grids import LogSNR
from diffusion.parameterizations import X0
from diffusion.samplers import ddim
from diffusion.schedulers import Cosine
from tests.callbacks.toy import Toy, fit


class Flat(torch.nn.Module):
    """Answers the mean of the toy network's weights everywhere, so that a sample shows which weights made it."""

    def __init__(self, toy):
        super().__init__()
        self.toy = toy

    def forward(self, x, c_noise, cond=None):
        return torch.zeros_like(x) + self.toy.weight.mean().clamp(-1, 1)


@pytest.fixture
def parts(tmp_path):
    module, ema = Toy(lr=0.3), EMA()
    denoiser = NetworkDenoiser(Cosine(), X0(sd=0.5), Flat(module.network))
    generative = GenerativeModel(denoiser, Identity(), ddim, LogSNR(steps=3))
    return module, ema, Previews(generative, (1, 8, 8), 2, tmp_path / "samples", ema, n=4, strip=2, every_n_steps=4)


def test_pictures_at_their_interval_and_at_the_end(parts, tmp_path):
    module, ema, previews = parts
    fit(module, [Budget(10, None), ema, previews], val_check_interval=2)
    names = {p.name for p in (tmp_path / "samples").iterdir()}
    assert names == {f"{kind}_{step:07d}.png" for kind in ("step", "denoising") for step in (4, 8, 10)}


def test_shows_the_average_and_changes_no_weights(parts, tmp_path):
    module, ema, previews = parts
    fit(module, [Budget(8, None), ema, previews], val_check_interval=8)
    plain = Toy(lr=0.3)
    fit(plain, [Budget(8, None)], val_check_interval=8)
    assert torch.equal(module.network.weight, plain.network.weight)
    grey = round((ema.average["weight"].mean().item() + 1) * 127.5)
    own = round((module.network.weight.mean().item() + 1) * 127.5)
    assert grey != own
    picture = np.asarray(Image.open(tmp_path / "samples" / "step_0000008.png"))
    levels, counts = np.unique(picture, return_counts=True)
    assert set(levels) == {grey, 255}  # the samples, and the gaps between them
    assert counts[0] > counts[1]
