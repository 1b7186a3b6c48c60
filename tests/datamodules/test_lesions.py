import numpy as np
import pytest
import torch

from datamodules.batch import DataError, DataSpec
from datamodules.lesions import CONTRASTS, Lesions, far, planted
from datamodules.tissue import Tissue

STRIDE = 8


@pytest.fixture(scope="module")
def tissue() -> Tissue:
    return Tissue(stride=STRIDE)


@pytest.fixture(scope="module", params=[(c, t) for c in CONTRASTS for t in ("mixed", "flat")])
def lesions(request) -> Lesions:
    contrast, texture = request.param
    return Lesions(contrast=contrast, texture=texture, stride=STRIDE)


def test_train_is_tissue_and_half_of_the_others_have_a_disc(tissue, lesions):
    assert lesions.spec == DataSpec((3, 28, 28), None, mask_classes=2)
    assert torch.equal(lesions.split("train").images, tissue.split("train").images)
    assert not lesions.split("train").masks.any()
    for name in ("val", "test"):
        found, true = lesions.split(name), tissue.split(name)
        held = found.masks.flatten(1).any(1).bool()
        assert int(held.sum()) == len(found) // 2
        changed = (found.images != true.images).any(1, keepdim=True)
        assert not (changed & (found.masks == 0)).any(), "outside of the masks nothing has changed"
        assert (changed & (found.masks == 1)).sum() > 0.85 * found.masks.sum()  # but where a colour fits by chance


def test_a_disc_lies_in_the_image_and_has_a_radius_of_3_to_6(lesions):
    masks = lesions.split("test").masks[:, 0].bool()
    masks = masks[masks.flatten(1).any(1)]
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    # The pixels whose centres are less than r away: up to 2 r + 1 in a row.
    assert rows.min() >= 5 and rows.max() <= 13 and (rows - columns).abs().max() <= 1
    assert rows.unique().numel() > 5
    area = masks.flatten(1).sum(1) / (torch.pi / 4 * rows * columns)
    assert area.min() > 0.8 and area.max() < 1.3


def test_the_contrast_is_what_is_stated(tissue, lesions):
    std = tissue.split("train").images.double().std(correction=0)
    found, true = lesions.split("val"), tissue.split("val")
    held = found.masks.flatten(1).any(1).bool()
    square = ((found.images.double() - true.images) ** 2).mean(1).flatten(1).sum(1)
    change = (square / found.masks.flatten(1).sum(1))[held].sqrt() / std
    wanted = CONTRASTS[lesions.contrast]
    assert (change - wanted).abs().max() < 0.02  # rounding to grey levels


def test_contrasts_share_place_and_colour():
    low, high = (Lesions(contrast=c, stride=STRIDE).split("val") for c in ("low", "high"))
    assert torch.equal(low.masks, high.masks)
    normal = Tissue(stride=STRIDE).split("val").images.double()
    inside = high.masks.bool().expand_as(high.images)
    # Four times the weight on the same colours.
    assert (4 * (low.images - normal)[inside] - (high.images - normal)[inside]).abs().max() <= 2.5


def test_a_lesion_by_hand():
    image = np.full((3, 2, 2), 100, np.uint8)
    inside = np.array([[True, False], [False, False]])
    found = planted(image, inside, np.array([[200], [100], [100]], np.uint8), change=np.sqrt(100**2 / 3) / 2)
    assert found[:, 0, 0].tolist() == [150, 100, 100]
    assert (found[:, ~inside] == 100).all()


def test_colours_must_be_far():
    tissue, near, away = np.full((3, 4), 100), np.full((3, 1), 104), np.full((3, 1), 160)
    assert far(tissue, iter([near, away]), 50.0) is away
    with pytest.raises(DataError, match="differ enough"):
        far(tissue, iter([near]), 50.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"contrast": "some"}, "low, middle, high"), ({"texture": "rough"}, "mixed, flat"), ({"size": 13}, "14 or more")],
)
def test_what_means_nothing_is_refused(options, said):
    with pytest.raises(DataError, match=said):
        Lesions(**options)
