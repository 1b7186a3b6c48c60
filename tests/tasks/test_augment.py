"""Which variants are drawn, and of which images."""

import pytest
import torch

from diffusion.tasks.augment import drawn, planned

STRENGTHS = (0.2, 0.5, 0.8)


def test_every_image_gets_every_strength_as_often():
    plan = planned(range(50), 6, STRENGTHS, seed=0)
    for row in range(50):
        assert sorted(v.strength for v in plan if v.row == row) == sorted(STRENGTHS * 2)
    # Of the first variant alone all strengths are as likely: 50 draws of 3, each expected 17 times.
    firsts = [v.strength for v in plan if v.number == 1]
    assert all(8 <= firsts.count(strength) <= 26 for strength in STRENGTHS)


def test_a_variant_depends_on_seed_place_and_number_alone():
    def of(places, variants, seed):
        return {(places[v.row], v.number): v[2:] for v in planned(places, variants, STRENGTHS, seed)}

    many, few = of(list(range(9)), 5, 0), of([4, 7], 2, 0)
    assert all(many[key] == value for key, value in few.items())
    assert of([4, 7], 2, 1) != few
    assert len({seed for _, seed in many.values()}) == len(many)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_each_variant_is_drawn_of_its_own_image_class_and_strength(batch_size):
    originals, labels = torch.arange(7.0).view(7, 1, 1, 1), torch.arange(7) % 3
    plan = planned(range(7), 4, STRENGTHS, seed=0)

    def redraw(images, strength, told, seeds):
        assert len(images) <= batch_size
        return torch.stack([images[:, 0, 0, 0], torch.full((len(images),), strength), told, torch.tensor(seeds)], 1)

    found = dict(drawn(redraw, lambda rows: originals[rows], labels, plan, batch_size))
    assert set(found) == set(plan)
    for variant, (place, strength, label, seed) in found.items():
        assert place == variant.row and label == variant.row % 3
        assert strength == torch.tensor(variant.strength) and seed == torch.tensor(variant.seed).float()
