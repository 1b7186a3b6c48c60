"""Masks move with the images, and with nothing else."""

import pytest
import torch

from diffusion.apps.config import CONF, choice_of
from diffusion.models import factory

CHOICES = sorted(path.stem for path in (CONF / "augmentation").glob("*.yaml") if path.stem != "none")
STILL = {"intensity"}
SHAPES = [(3, 28, 28), (3, 4, 20, 20)]


def scene(shape, count=48):
    """Masks with a box of each class from 1 to 3, and images whose channel k is white in class k + 1 alone."""
    rng = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, 1, *shape[1:])
    for mask in masks:
        for k in (1, 2, 3):
            y, x = (torch.randint(2, side - 10, (), generator=rng) for side in shape[-2:])
            mask[..., y : y + 8, x : x + 8] = k
    return masks, torch.cat([2.0 * (masks == k) - 1 for k in (1, 2, 3)], 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CHOICES)
def test_a_mask_painted_into_the_image_moves_with_it(name, shape):
    augmentation = factory(choice_of("augmentation", name))()
    if name == "histology":  # only what it moves can be read off the colours
        augmentation = augmentation.links[0]
    masks, images = scene(shape)
    draws = torch.randn(len(masks), augmentation.draws, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = augmentation.move(masks, draws)
    assert moved.shape == masks.shape and moved.dtype == masks.dtype
    if name in STILL:
        assert torch.equal(moved, masks)
        return
    assert (moved != masks).flatten(1).any(1).float().mean() > 0.2
    after, _ = augmentation(images, draws)
    # Off the seams, where the interpolation mixes two classes, the channels tell the class.
    white = (after + 1) / 2
    sure = ((white < 1e-3) | (white > 1 - 1e-3)).all(1, keepdim=True)
    read = torch.cat([1 - white.sum(1, keepdim=True), white], 1).argmax(1, keepdim=True)
    assert sure.float().mean() > 0.5 and all((read[sure] == k).any() for k in range(4))
    assert torch.equal(moved[sure], read[sure].float())
    # On them it is the class that fills most.
    assert torch.equal(moved, read.float())


def test_flips_and_turns_move_masks_exactly_and_stain_leaves_them():
    histology = factory(choice_of("augmentation", "histology"))()
    masks, _ = scene((3, 16, 16))
    draws = torch.randn(len(masks), histology.draws, generator=torch.Generator().manual_seed(2))
    exact, _ = histology.links[0](masks / 4, draws[:, : histology.links[0].draws])
    assert torch.equal(histology.move(masks, draws), exact * 4)
