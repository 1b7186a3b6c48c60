"""Data for extractors, and how they refuse."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from datamodules.arrays.split import SPLITS, Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataSpec
from diffusion.errors import UserError


def data(*shape: int) -> SimpleNamespace:
    """As much of a data module as a network that is not trained here looks at."""
    return SimpleNamespace(spec=DataSpec(shape, None), source="scans.npz")


def images(n: int, *shape: int) -> Tensor:
    return torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Stripes(ImageDataModule):
    """Bright or dark, upright stripes in images of even place and level ones in those of odd; no labels."""

    source = "stripes.npz"

    def load(self):
        rng, splits = torch.Generator().manual_seed(0), {}
        for name in SPLITS:
            phase = torch.rand(200, 1, 1, 1, generator=rng)
            upright = (2 * torch.pi * (phase + torch.arange(8) / 4)).sin().expand(200, 1, 8, 8).clone()
            upright[1::2] = upright[1::2].transpose(2, 3)
            tone = 78 + 100 * torch.rand(200, 1, 1, 1, generator=rng)
            noise = 10 * torch.randn(200, 1, 8, 8, generator=rng)
            splits[name] = Split((tone + 25 * upright + noise).clamp(0, 255).byte())
        return splits


def refusal(build, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        build(*arguments, **options)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400
    return said
