import pytest
import torch
from torch import nn

from diffusion.codecs import Codec, Identity
from diffusion.errors import UserError
from diffusion.tasks.reconstruct import evenly_spaced, reconstruct

IMAGES = torch.randint(0, 256, (5, 2, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Half(Codec):
    """Keeps half of every value."""

    def moments(self, images):
        return images / 2

    def draw(self, moments, rng):
        assert rng is None, "the mean is wanted"
        return moments

    def decode(self, latents):
        return latents

    def latent_shape(self, shape):
        return tuple(shape)


def test_the_identity_gives_every_image_back_to_the_bit():
    done = []
    assert torch.equal(reconstruct(Identity(), IMAGES, 2, on_batch=done.append), IMAGES)
    assert done == [2, 4, 5]


def test_images_go_through_the_codec_on_the_scale_from_minus_one_to_one():
    wanted = ((IMAGES.float() / 127.5 - 1) / 2 * 127.5 + 127.5).round()
    assert (reconstruct(Half(), IMAGES, 3).float() - wanted).abs().max() <= 1


def test_what_is_not_finite_is_refused(monkeypatch):
    monkeypatch.setattr(Half, "decode", lambda self, latents: nn.functional.threshold(latents, 2.0, float("nan")))
    with pytest.raises(UserError, match="not finite"):
        reconstruct(Half(), IMAGES, 3)


def test_places_are_spread_over_all_images_whatever_the_period_of_their_order():
    assert evenly_spaced(10, 4).tolist() == [0, 3, 5, 9]
    for n, count in ((1265, 12), (100, 99), (7, 6)):
        gaps = evenly_spaced(n, count).diff()
        assert len(gaps) == count - 1 and gaps.min() > 0 and gaps.max() < 2 * n / count + 1
    # The columns of a grid of 55 rows, all of whose images 115 apart are of one.
    assert len(set((evenly_spaced(1265, 11) % 23).tolist())) > 7
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert evenly_spaced(100_003, 100_003).tolist() == list(range(100_003))
