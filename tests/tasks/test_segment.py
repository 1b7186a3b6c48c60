"""The mean mask of a segmenter that is random in a known way."""

import torch

from diffusion.tasks.segment import NetworkSegmenter, Segmenter, mean_masks
from diffusion.tasks.segment_figure import painted, widest

IMAGES = torch.randint(0, 256, (5, 1, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Coin(Segmenter):
    """Class 1 everywhere or class 0 everywhere, by a coin that falls on 1 as often as the image is bright."""

    random = True

    def draw(self, images, seeds):
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        share = (images[:, 0] + 1) / 2
        ones = torch.stack([(torch.rand((), generator=rng) < s).float() for rng, s in zip(rngs, share, strict=True)])
        return torch.stack([1 - ones, ones], 1)


def test_the_mean_of_many_draws_is_the_probability():
    images = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)

    class Whole(Coin):
        def draw(self, images, seeds):
            return super().draw(images[:, :, 0, 0], seeds)[..., None, None].expand(-1, -1, 2, 2)

    found = mean_masks(Whole(), images, range(4), samples=400, seed=0, batch_size=3)
    assert found.shape == (4, 2, 2, 2) and torch.allclose(found.sum(1), torch.ones(()))
    assert torch.allclose(found[:, 1, 0, 0], torch.tensor([0.0, 0.2, 0.8, 1.0]), atol=0.06)
    # Of a part of the images, and in other batches, the same.
    part = mean_masks(Whole(), images[1:3], [1, 2], samples=400, seed=0, batch_size=1)
    assert torch.equal(part, found[1:3])
    assert not torch.equal(mean_masks(Whole(), images[1:3], [1, 2], samples=400, seed=1, batch_size=1), part)


def test_a_network_draws_once_and_is_told_of_no_noise():
    calls = []

    class Net(torch.nn.Module):
        def forward(self, x, c_noise):
            calls.append(c_noise)
            return torch.cat([x, -x], 1)

    done = []
    found = mean_masks(NetworkSegmenter(Net()), IMAGES, range(5), 8, 0, batch_size=2, on_batch=done.append)
    assert done == [2, 2, 1] and all((c == 0).all() for c in calls)
    torch.testing.assert_close(found[:, 0], torch.sigmoid(2 * (IMAGES[:, 0] / 127.5 - 1)))


def test_volumes_are_shown_where_most_of_the_mask_is():
    masks = torch.zeros(2, 4, 3, 3, dtype=torch.long)
    masks[0, 2, 0], masks[0, 1, 0, 0], masks[1, 3] = 1, 1, 2
    images = torch.arange(2 * 4).reshape(2, 1, 4, 1, 1).expand(2, 1, 4, 3, 3)
    shown, cut = widest(masks, images, masks)
    assert shown.shape == (2, 1, 3, 3) and shown[:, 0, 0, 0].tolist() == [2, 7]
    assert torch.equal(cut, torch.stack([masks[0, 2], masks[1, 3]]))
    colours = painted(cut)
    assert colours.shape == (2, 3, 3, 3) and len(colours.movedim(1, -1).flatten(0, 2).unique(dim=0)) == 3
