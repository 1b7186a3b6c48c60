"""The classical denoisers, on images with a planted noise."""

import pytest
import torch
from skimage import data

from diffusion.tasks.classical import DENOISERS, settings_of, tuned


def clean(shape: tuple[int, ...]) -> torch.Tensor:
    """Two images of a photograph, or two smooth volumes, (2, C, *S) in [-1, 1]."""
    if len(shape) == 4:
        axes = torch.meshgrid(*(torch.linspace(0, 3, side) for side in shape[1:]), indexing="ij")
        return torch.stack([torch.stack(axes).sum(0).sin(), torch.stack(axes).prod(0).cos()])[:, None] * 0.8
    image = torch.from_numpy(data.astronaut()).movedim(-1, 0)[: shape[0]] / 127.5 - 1
    return torch.stack([image[:, top : top + shape[1], 200 : 200 + shape[2]] for top in (30, 110)])


def noise_of(x0: torch.Tensor) -> torch.Tensor:
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * ((a.clamp(-1, 1) - b).square().mean() / 4).log10().item()


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("shape", [(1, 40, 32), (3, 40, 32), (1, 12, 11, 10)])
def test_noise_goes_and_the_image_stays(name, shape):
    """Sides differ, so that axes cannot be taken for each other."""
    x0, level = clean(shape), 0.25
    noisy = x0 + level * noise_of(x0)
    settings, best = tuned(name, x0, noisy, level)
    found = DENOISERS[name](noisy, level, **settings)
    assert found.shape == x0.shape and found.dtype == torch.float32
    assert psnr(found, x0) > psnr(noisy, x0) + 3
    assert best == pytest.approx(psnr(found, x0), abs=0.5)  # the mean of PSNRs, and that of the mean error


def test_the_best_settings_are_not_at_an_end():
    """Of what is tried for a photograph at a middle level."""
    x0 = clean((3, 40, 32))
    noisy = x0 + 0.25 * noise_of(x0)
    for name, key in (("tv", "weight"), ("nlm", "strength")):
        tried = [settings[key] for settings in settings_of(name, 4)]
        assert min(tried) < tuned(name, x0, noisy, 0.25)[0][key] < max(tried)
