"""Controls: what they say of an image whose edges, lines and masks are known."""

import pytest
import torch

from datamodules.batch import DataSpec
from diffusion import controls
from diffusion.apps.config import CONF, choice_of
from diffusion.errors import UserError
from diffusion.models import factory

SPEC = DataSpec(shape=(3, 32, 32), classes=None, mask_classes=3)


def square() -> dict[str, torch.Tensor]:
    """Two images: a white square on black, and nothing; with masks of three classes."""
    images = -torch.ones(2, 3, 32, 32)
    images[0, :, 8:24, 8:24] = 1
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, :, 8:24, 8:24] = 1
    masks[0, :, 12:20, 12:20] = 2
    return {"image": images, "mask": masks}


def near_the_border(lines: torch.Tensor, within: int) -> bool:
    rows, columns = lines.nonzero().T
    distance = torch.stack([(each - side).abs() for each in (rows, columns) for side in (8, 23)]).min(0).values
    return bool((distance <= within).all())


@pytest.mark.parametrize("make", [controls.Canny, controls.Hough])
def test_edges_are_where_the_square_ends(make):
    found = make(SPEC)(square())
    assert found.shape == (2, 1, 32, 32) and found.dtype is torch.float32
    assert set(found.unique().tolist()) == {0, 1}
    assert found[0].sum() >= 40 and found[1].sum() == 0
    assert near_the_border(found[0, 0], 1)


def test_scribbles_are_thick_edges():
    found, thin = controls.Scribbles(SPEC)(square()), controls.Canny(SPEC, sigma=2.0)(square())
    assert found[0].sum() > 2 * thin[0].sum() and (found >= thin).all()
    assert near_the_border(found[0, 0], 4)


def test_mask_and_image():
    batch = square()
    found = controls.Mask(SPEC)(batch)
    assert found.shape == (2, 3, 32, 32)
    assert torch.equal(found.argmax(1, keepdim=True), batch["mask"].long()) and torch.equal(
        found.sum(1), torch.ones(2, 32, 32)
    )
    assert torch.equal(controls.Image(SPEC)(batch), batch["image"])


@pytest.mark.parametrize("size", [(32, 32), (8, 8, 8)], ids=str)
def test_low_resolution_keeps_the_means_of_blocks(size):
    spec = DataSpec(shape=(2, *size), classes=None)
    images = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0))
    found = controls.LowResolution(spec, 4)({"image": images})
    corner = (slice(None), slice(None), *(slice(0, 4),) * len(size))
    wanted = images[corner].flatten(2).mean(2)
    assert found.shape == images.shape
    torch.testing.assert_close(found[corner].flatten(2), wanted[..., None].expand(-1, -1, 4 ** len(size)))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "control").glob("*.yaml") if path.stem != "none"))
def test_every_choice_can_be_shown_and_is_of_its_own_image(name):
    control = factory(choice_of("control", name))(SPEC)
    batch = square()
    found = control(batch)
    assert found.shape == (2, *control.shape)
    assert control.shown(found).shape[1] in (1, 3) and control.shown(found).abs().max() <= 1
    alone = control({key: value[1:] for key, value in batch.items()})
    assert torch.equal(alone, found[1:])


@pytest.mark.parametrize(
    "make",
    [
        lambda: controls.Mask(DataSpec((1, 8, 8), None)),
        lambda: controls.Canny(DataSpec((1, 8, 8, 8), None)),
        lambda: controls.Canny(SPEC, sigma=0),
        lambda: controls.Scribbles(SPEC, width=0),
        lambda: controls.Hough(SPEC, length=0),
        lambda: controls.LowResolution(SPEC, 5),
        lambda: controls.LowResolution(SPEC, 1),
    ],
)
def test_refusals(make):
    with pytest.raises(UserError, match="control"):
        make()
