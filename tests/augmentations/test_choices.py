"""What holds for every choice of the group, and for several in turn."""

import pytest
import torch

from datamodules.batch import DataSpec
from diffusion.apps.config import CONF, choice_of
from diffusion.augmentations import Augmentation, Chain, Geometry, Intensity
from diffusion.errors import UserError
from diffusion.models import factory
from tests.training import built, composed

CHOICES = sorted(path.stem for path in (CONF / "augmentation").glob("*.yaml") if path.stem != "none")
TOLD = {"affine", "edm", "elastic", "histology", "intensity"}
RGB, VOLUME, GREY = (3, 28, 28), (3, 5, 12, 12), (1, 8, 8)


def chosen(name: str) -> Augmentation:
    return factory(choice_of("augmentation", name))()


def images(shape, count: int = 64) -> torch.Tensor:
    """With black, white and all between."""
    return (3 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)) - 1.5).clamp(-1, 1)


def draws(augmentation: Augmentation, count: int = 64) -> torch.Tensor:
    return torch.randn(count, augmentation.draws, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [RGB, VOLUME])
@pytest.mark.parametrize("name", CHOICES)
def test_images_stay_images_and_the_network_is_told_or_not(name, shape):
    augmentation, before = chosen(name), images(shape)
    augmentation.check(shape)
    after, told = augmentation(before, draws(augmentation))
    assert after.shape == before.shape and after.dtype == torch.float32
    assert torch.isfinite(after).all() and after.abs().max() <= 1
    assert told.shape == (64, augmentation.values) and (augmentation.values > 0) == (name in TOLD)
    changed = (after != before).flatten(1).any(1)
    assert changed.any()
    if name in TOLD - {"histology"}:  # which tells of stains alone
        assert torch.equal(changed, told.any(1))
        assert not changed.all()


@pytest.mark.parametrize("name", CHOICES)
def test_an_image_depends_on_its_own_draws_alone_and_never_on_precision(name):
    augmentation, before = chosen(name), images(RGB)
    numbers = draws(augmentation)
    after, told = augmentation(before, numbers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = [augmentation(before[i : i + 16], numbers[i : i + 16]) for i in range(0, 64, 16)]
    assert torch.allclose(torch.cat([part for part, _ in parts]), after, atol=1e-5)
    assert torch.equal(torch.cat([part for _, part in parts]), told)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [RGB, GREY])
@pytest.mark.parametrize("name", CHOICES)
def test_the_model_is_built_for_it_or_refuses_it_at_once(name, shape):
    experiment = "tissue_pixel" if shape == RGB else "digits_pixel"
    config = composed([f"experiment={experiment}", "network=tiny", "network.channels=8", f"augmentation={name}"])
    if name == "histology" and shape == GREY:
        with pytest.raises(UserError, match="1 channel instead of 3"):
            built(config, DataSpec(shape, 4), std=0.5)
        return
    _, module = built(config, DataSpec(shape, 4), std=0.5)
    with torch.no_grad():
        given = {"augmentation": torch.zeros(2, module.augmentation.values)} if name in TOLD else {}
        answer = module.denoiser(torch.zeros(2, *shape), torch.full((2,), 0.5, dtype=torch.float64), given)
    assert answer.shape == (2, *shape)
    assert hasattr(module.network.embedding, "augmentation") == (name in TOLD)


def test_several_in_turn_share_the_draws_and_tell_all():
    first, second = Geometry(told=True, flips=("x",), shift=0.1), Intensity(probability=1.0)
    silent = Geometry(flips=("y",))
    chain = Chain(first=first, silent=silent, second=second)
    assert (chain.draws, chain.values) == (4 + 1 + 4, 3 + 0 + 3)
    before, numbers = images((1, 8, 8)), draws(chain)
    after, told = chain(before, numbers)
    moved, told_first = first(before, numbers[:, :4])
    moved, _ = silent(moved, numbers[:, 4:5])
    wanted, told_second = second(moved, numbers[:, 5:])
    assert torch.equal(after, wanted) and torch.equal(told, torch.cat([told_first, told_second], 1))


def test_an_empty_chain_does_nothing():
    before = images((1, 8, 8))
    after, told = Chain()(before, torch.zeros(64, 0))
    assert torch.equal(after, before) and told.shape == (64, 0)


def test_an_image_that_is_not_square_cannot_be_turned_by_quarters():
    config = composed(["augmentation=dihedral", "network=tiny", "network.channels=8"])
    with pytest.raises(UserError, match="square"):
        built(config, DataSpec((3, 28, 20), 4), std=0.5)
