"""What the classifiers of `utility` are given, and that those are alike in all else."""

import pytest
import torch

from datamodules.digits import Digits
from diffusion.metrics.paired import crossed_interval
from diffusion.tasks import utility
from diffusion.tasks.utility import (
    ARMS,
    OF_VARIANTS,
    Labelled,
    Variants,
    augmented,
    batch_of,
    probabilities,
    steps_of,
    trained,
    within_budget,
)

LABELS = torch.tensor([0, 1, 2] * 20 + [2] * 5)
REAL = Labelled(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.zeros(10, dtype=torch.long))
SYNTHETIC = Labelled(torch.full((10, 1, 8, 8), 255, dtype=torch.uint8), torch.ones(10, dtype=torch.long))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_budget_holds_so_many_of_each_class():
    chosen = within_budget(LABELS, 7, seed=0)
    assert LABELS[chosen].bincount().tolist() == [7, 7, 7]
    assert len(chosen.unique()) == len(chosen)


def test_a_small_budget_is_part_of_a_larger_one():
    small, large = (set(within_budget(LABELS, budget, seed=3).tolist()) for budget in (5, 12))
    assert small < large


def test_a_class_with_fewer_gives_all():
    assert LABELS[within_budget(LABELS, 22, seed=0)].bincount().tolist() == [20, 20, 22]
    assert torch.equal(within_budget(LABELS, 1000, seed=0), torch.arange(len(LABELS)))


def test_a_budget_depends_on_the_seed_alone():
    first = within_budget(LABELS, 7, seed=0)
    torch.rand(3)
    assert torch.equal(within_budget(LABELS, 7, seed=0), first)
    assert not torch.equal(within_budget(LABELS, 7, seed=1), first)


@pytest.mark.parametrize(
    ("arm", "progress", "made"),
    [
        ("real", 0.0, 0),
        ("real", 0.9, 0),
        ("augmented", 0.2, 0),
        ("synthetic", 0.0, 12),
        ("synthetic", 0.9, 12),
        ("both", 0.1, 6),
        ("both", 0.9, 6),
        ("synthetic_then_real", 0.0, 12),
        ("synthetic_then_real", 0.49, 12),
        ("synthetic_then_real", 0.5, 0),
        ("synthetic_then_real", 0.99, 0),
    ],
)
def test_how_many_of_a_batch_are_synthetic(arm, progress, made):
    images, labels = batch_of(arm, REAL, SYNTHETIC, 12, progress, torch.Generator().manual_seed(0))
    assert images.shape == (12, 1, 8, 8) and labels.sum() == made
    assert ((images.mean((1, 2, 3)) > 0) == (labels == 1)).all()
    if arm != "augmented":
        assert images.unique().tolist() == [value for value, there in ((-1, made < 12), (1, made > 0)) if there]


def shades(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()


def of_shades(probability: float) -> tuple[Labelled, Variants]:
    """Real images of the shades 10, 20, 30, 40, and their variants: 11, 12 and 13; none; 31; 41 and 42."""
    source = torch.tensor([3, 0, 2, 0, 3, 0])
    variants = Variants.of(shades([41, 11, 31, 12, 42, 13]), source, 4, probability)
    return Labelled(shades([10, 20, 30, 40]), torch.arange(4)), variants


def drawn_shades(real: Labelled, variants: Variants) -> dict[int, set[int]]:
    """Of each label the shades in a large batch, and a check that all of them are as likely."""
    images, labels = batch_of("variants", real, SYNTHETIC, 8000, 0.3, torch.Generator().manual_seed(0), variants)
    found = ((images[:, 0, 0, 0] + 1) * 127.5).round().long()
    return {label: found[labels == label].bincount(minlength=50) for label in labels.unique().tolist()}


def test_real_images_are_replaced_by_their_own_variants_with_that_probability():
    counts = drawn_shades(*of_shades(0.6))
    for label, (own, theirs) in enumerate([(10, (11, 12, 13)), (20, ()), (30, (31,)), (40, (41, 42))]):
        n, count = int(counts[label].sum()), counts[label]
        assert count[[own, *theirs]].sum() == n
        for shade in theirs:
            assert count[shade] / n == pytest.approx(0.6 / len(theirs), abs=0.04)


def test_a_budget_has_the_variants_of_its_own_images_alone():
    real, variants = of_shades(1.0)
    places = torch.tensor([1, 3])
    counts = drawn_shades(real.take(places), variants.take(places))
    assert {label: set(count.nonzero().flatten().tolist()) for label, count in counts.items()} == {
        1: {20},
        3: {41, 42},
    }


def test_all_images_are_drawn():
    ids = Labelled(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 8, 8), torch.arange(10))
    rng = torch.Generator().manual_seed(0)
    images, labels = batch_of("real", ids, SYNTHETIC, 2000, 0.0, rng)
    assert ((images[:, 0, 0, 0] + 1) * 127.5).round().long().equal(labels)
    assert labels.bincount(minlength=10).min() > 140


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 8, 12, 12)])
def test_augmented_images_are_changed_a_little_and_not_mirrored(shape):
    images = torch.full((64, *shape), -0.5)
    images[..., : shape[-1] // 2] = 0.5
    before = images.clone()
    found = augmented(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape and torch.equal(images, before)
    assert found.min() >= -1 and found.max() <= 1
    left, right = found[..., : shape[-1] // 2], found[..., -(shape[-1] // 2) :]
    assert (left.flatten(1).mean(1) > right.flatten(1).mean(1) + 0.5).all()
    moved = (found - images).abs().flatten(1).mean(1)
    assert moved.min() > 0.001 and moved.max() < 0.5


def test_all_arms_of_a_seed_begin_with_the_same_weights(monkeypatch):
    monkeypatch.setattr(utility, "LEARNING_RATE", 0.0)
    first, *others = (trained(arm, REAL, SYNTHETIC, 3, 2, seed=0) for arm in ARMS)
    assert all(same(first, other) for other in others)
    assert not same(first, trained("real", REAL, SYNTHETIC, 3, 2, seed=1))


def test_training_depends_on_its_arguments_alone_and_leaves_the_global_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    done = []
    first = trained("both", REAL, SYNTHETIC, 3, 3, seed=0, on_step=done.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert done == [1, 2, 3] and not first.training
    torch.rand(7)
    assert same(first, trained("both", REAL, SYNTHETIC, 3, 3, seed=0))
    assert not same(first, trained("augmented", REAL, SYNTHETIC, 3, 3, seed=0))


def test_one_step_and_volumes_train():
    volumes = Labelled(torch.zeros(4, 1, 6, 6, 6, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    variants = Variants.of(volumes.images, torch.arange(4), 4, 0.5)
    for arm in (*ARMS, *OF_VARIANTS):
        given = probabilities(trained(arm, volumes, volumes, 2, 1, seed=0, variants=variants), volumes.images)
        assert given.shape == (4, 2) and torch.allclose(given.sum(1), torch.ones(4, dtype=torch.float64))


def test_larger_images_take_more_steps_and_volumes_fewer():
    assert steps_of((1, 8, 8)) < steps_of((3, 28, 28)) and steps_of((1, 28, 28, 28)) < steps_of((1, 8, 8))


def test_probabilities_do_not_depend_on_the_batch():
    images = torch.randint(0, 256, (7, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    classifier = trained("real", REAL, SYNTHETIC, 3, 1, seed=0)
    whole, parts = probabilities(classifier, images), probabilities(classifier, images, batch_size=3)
    assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.slow
def test_images_that_tell_nothing_of_their_labels_teach_nothing():
    data = Digits()
    train, test = data.split("train"), data.split("test")
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (500, 1, 8, 8), generator=rng, dtype=torch.uint8)
    synthetic = Labelled(noise, torch.randint(10, (500,), generator=rng))
    real = Labelled(train.images, train.labels)

    def right(arm: str) -> torch.Tensor:
        answers = [probabilities(trained(arm, real, synthetic, 10, 60, seed), test.images) for seed in range(3)]
        return torch.stack([(each.argmax(1) == test.labels).double() for each in answers])

    assert crossed_interval(right("synthetic")).value < 0.2
    assert crossed_interval(right("real")).low > 0.9
