import math

import pytest
import torch
import torch.nn.functional as F

from diffusion.objectives import segmentation_loss


@pytest.mark.parametrize("size", [(6, 5), (3, 4, 5)])
def test_cross_entropy_and_dice_of_known_answers(size):
    masks = torch.randint(3, (4, 1, *size), generator=torch.Generator().manual_seed(0)).float()
    right = F.one_hot(masks[:, 0].long(), 3).movedim(-1, 1).float()
    assert segmentation_loss(1000 * right, masks, 1.0).tolist() == pytest.approx([0] * 4, abs=1e-6)
    # Even odds: log K, and an overlap of (2 n_k / 3 + 1) / (n / 3 + n_k + 1) for a class of n_k of the n pixels.
    even, n = torch.zeros(4, 3, *size), math.prod(size)
    counts = right.flatten(2).sum(2)
    overlap = ((2 * counts / 3 + 1) / (n / 3 + counts + 1)).mean(1)
    wanted = math.log(3) + 0.7 * (1 - overlap)
    torch.testing.assert_close(segmentation_loss(even, masks, 0.7), wanted)


def test_a_class_that_neither_has_costs_nothing_and_one_made_up_does():
    masks, sure = torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4)
    sure[:, 0] = 20
    assert segmentation_loss(sure, masks, 1.0).item() == pytest.approx(0, abs=1e-6)
    made_up = segmentation_loss(-sure, masks, 1.0) - segmentation_loss(-sure, masks, 0.0)
    assert made_up.item() == pytest.approx(1 - (1 / 17 + 1 / 17) / 2, abs=1e-5)
