import pytest
import torch
import torch.nn.functional as F

from datamodules.arrays.split import SPLITS, Split
from datamodules.base import ImageDataModule
from datamodules.digits import Digits
from diffusion.extractors import Domain
from diffusion.extractors.contrastive import nt_xent, view
from diffusion.random import generator


def test_the_loss_is_that_of_the_paper():
    a, b = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    views, losses = torch.cat([a, b]), []
    for i in range(10):
        s = [float(F.cosine_similarity(views[i], views[k], dim=0)) / 0.3 for k in range(10)]
        others = torch.tensor([s[k] for k in range(10) if k != i], dtype=torch.float64)
        losses.append(-(s[(i + 5) % 10] - others.logsumexp(0)))
    torch.testing.assert_close(nt_xent(a, b, 0.3), torch.stack(losses).mean())
    assert nt_xent(a, a, 0.3) < nt_xent(a, b, 0.3)


@pytest.mark.parametrize("size", [(8, 9), (6, 7, 8)])
def test_a_view_is_of_its_own_image_and_draw(size):
    images = torch.rand(4, 2, *size) * 2 - 1
    first, second, again = (view(images, generator("view", seed)) for seed in (0, 1, 0))
    assert first.shape == images.shape and first.abs().max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, second)
    changed = images.clone()
    changed[2] = 0
    kept = [0, 1, 3]
    assert torch.equal(view(changed, generator("view", 0))[kept], first[kept])


def test_views_are_shifted_flipped_and_of_other_tones(monkeypatch):
    for name in ("CONTRAST", "BRIGHTNESS", "NOISE"):
        monkeypatch.setattr(f"diffusion.extractors.contrastive.{name}", 0.0)
    corner = torch.full((2000, 1, 14, 14), -1.0)
    corner[:, :, 3, 4] = 1
    found = {tuple(place[1:]) for place in (view(corner, generator("views")) == 1)[:, 0].nonzero().tolist()}
    rows, columns = range(1, 6), range(2, 7)
    wanted = {(r, c) for r in [*rows, *(13 - r for r in rows)] for c in [*columns, *(13 - c for c in columns)]}
    assert found == wanted
    monkeypatch.setattr("diffusion.extractors.contrastive.BRIGHTNESS", 0.2)
    tones = view(torch.zeros(400, 1, 4, 4), generator("views")).flatten(1)
    assert (tones == tones[:, :1]).all() and tones.min() < -0.15 and tones.max() > 0.15 and tones.abs().max() <= 0.2


class Unlabelled(ImageDataModule):
    source = "digits without labels"

    def load(self):
        digits = Digits()
        return {name: Split(digits.split(name).images) for name in SPLITS}


@pytest.mark.slow
def test_it_learns_to_find_the_other_view_of_an_image(tmp_path):
    data, found = Unlabelled(), {}
    test = data.split("test").images[:200].float() / 127.5 - 1
    for steps in (1, 150):
        network, rng = Domain(data, tmp_path, steps=steps).network, generator("views of the test")
        a, b = (F.normalize(network(view(test, rng)), dim=1) for _ in range(2))
        found[steps] = ((a @ b.T).argmax(1) == torch.arange(200)).double().mean().item()
    assert found[150] > 0.15 and found[150] > 3 * found[1]
