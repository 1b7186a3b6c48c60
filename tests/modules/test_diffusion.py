"""The module trains on numbers that depend on seed, step and place alone, however the batch is dealt out."""

import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from datamodules.arrays.order import EndlessBatches
from datamodules.batch import DataSpec
from diffusion.apps.config import CONF, choice_of
from diffusion.augmentations import Geometry
from diffusion.errors import UserError
from diffusion.modules.noisy import noise_bin_names
from tests.training import built, losses, run_training, state


def batch_of(n, seed=0, shape=(1, 8, 8), classes=10):
    rng = torch.Generator().manual_seed(seed)
    batch = {"image": torch.rand(n, *shape, generator=rng) * 2 - 1, "id": torch.arange(n)}
    return batch | ({"label": torch.randint(classes, (n,), generator=rng)} if classes else {})


def part(batch, places):
    return {name: value[places] for name, value in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1), (4, 4)])
def test_slices_of_a_batch_draw_what_the_whole_batch_draws(build, ranks, accumulate):
    whole, batch = build(), batch_of(32)
    whole._trainer.global_step = 3
    whole_loss = whole.training_step(batch, 0)
    whole_loss.backward()

    sliced, slice_losses = build(), []
    size = 32 // (ranks * accumulate)
    # Micro-batch m of rank r is slice m * ranks + r, as datamodules.arrays.order deals them out.
    for micro in range(accumulate):
        for rank in range(ranks):
            sliced._trainer = SimpleNamespace(
                accumulate_grad_batches=accumulate, world_size=ranks, global_rank=rank, global_step=3
            )
            first = (micro * ranks + rank) * size
            loss = sliced.training_step(part(batch, slice(first, first + size)), 3 * accumulate + micro)
            (loss / (ranks * accumulate)).backward()
            slice_losses.append(loss.item())

    (drawn,), calls = whole.objective.calls, sliced.objective.calls
    for name in ("time", "noise", "drop", "label", "augmentation"):
        assert torch.equal(torch.cat([call[name] for call in calls]), drawn[name]), name
    assert sum(slice_losses) / len(slice_losses) == pytest.approx(whole_loss.item(), rel=1e-5)
    for (name, p), q in zip(whole.network.named_parameters(), sliced.network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_numbers_differ_between_steps_seeds_and_samples(build):
    module, batch = build(), batch_of(16)
    for step in (0, 1):
        module._trainer.global_step = step
        module.training_step(batch, step)
    other = build(seed=1)
    other.training_step(batch, 0)
    first, second = module.objective.calls
    (third,) = other.objective.calls
    assert not torch.equal(first["noise"], second["noise"])
    assert not torch.equal(first["noise"], third["noise"])
    assert not torch.equal(first["time"], second["time"])
    noise = first["noise"].flatten(1)
    correlation = torch.corrcoef(noise) - torch.eye(16)
    assert correlation.abs().max() < 0.6  # of 64 values each: 0.125 is one standard deviation


def told_by_sample(build, n, images, batch_size, ranks=1, accumulate=1, **changes):
    """What a module is told of each sample of an endless stream of `images` images of n: {(epoch, index): numbers}."""
    module, found, seen = build(**changes), {}, [0] * n
    loaders = [
        iter(EndlessBatches(n, batch_size, seed=0, rank=rank, world_size=ranks, accumulate=accumulate))
        for rank in range(ranks)
    ]
    pictures = batch_of(n)
    for step in range(images // batch_size):
        for micro in range(accumulate):
            for rank in range(ranks):
                module._trainer = SimpleNamespace(
                    accumulate_grad_batches=accumulate, world_size=ranks, global_rank=rank, global_step=step
                )
                indices = next(loaders[rank])
                module.training_step(part(pictures, indices), step * accumulate + micro)
                for index, told in zip(indices.tolist(), module.objective.calls[-1]["augmentation"], strict=True):
                    found[seen[index], index] = told.tolist()
                    seen[index] += 1
    return found


@pytest.mark.slow
def test_a_samples_augmentation_depends_on_seed_epoch_and_sample_alone(build):
    """Batches of other sizes, over the border of epochs, on any ranks and in any parts, change each sample alike."""
    wanted = told_by_sample(build, n=10, images=48, batch_size=8)
    assert len(wanted) == 48
    for batch_size, ranks, accumulate in [(4, 1, 1), (12, 1, 1), (24, 1, 1), (24, 2, 1), (12, 1, 2), (24, 2, 2)]:
        assert told_by_sample(build, 10, 48, batch_size, ranks, accumulate) == wanted, (batch_size, ranks, accumulate)
    changed = {place: told for place, told in wanted.items() if any(told)}
    assert len({tuple(told) for told in changed.values()}) == len(changed) > 10
    assert told_by_sample(build, n=10, images=48, batch_size=8, seed=1) != wanted


def test_augmentation_that_is_not_told_changes_the_images_alone(build):
    module, batch = build(), batch_of(16)
    module.augmentation = Geometry(flips=("x",))
    module.codec.draw = lambda images, noise: drawn.append(images) or images
    drawn = []
    module.training_step(batch, 0)
    assert "augmentation" not in module.objective.calls[0]
    (images,), before = drawn, batch["image"]
    mirrored = (images == before.flip(-1)).flatten(1).all(1)
    assert (mirrored | (images == before).flatten(1).all(1)).all()
    assert 0 < mirrored.sum() < 16


def test_global_random_state_has_no_say(build):
    results = []
    for seed in (1, 2):
        module = build(**{"network.dropout": 0.5})
        torch.manual_seed(seed)
        results.append(module.train().training_step(batch_of(16), 0).item())
    assert results[0] == results[1]


def test_share_of_dropped_labels(build):
    module = build(**{"model.label_dropout": 0.25})
    module.objective.loss = lambda denoiser, x0, noise, t, cond: drops.append(cond["drop"]) or torch.zeros(len(x0))
    drops = []
    batch = batch_of(64)
    for step in range(50):
        module._trainer.global_step = step
        module.training_step(batch, step)
    drops = torch.stack(drops)
    assert drops.dtype == torch.bool
    assert abs(drops.double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 3200)
    # Each sample is dropped on its own: a batch's count spreads like a binomial's.
    spread = drops.sum(1).double().var().item()
    assert 0.4 * 12 < spread < 2 * 12


def test_a_dropped_label_cannot_be_seen(build):
    module = build(**{"model.label_dropout": 1.0})
    batch = batch_of(8)
    others = batch | {"label": (batch["label"] + 1) % 10}
    assert module.training_step(batch, 0) == module.training_step(others, 0)
    module.label_dropout = 0.0
    assert module.training_step(batch, 0) != module.training_step(others, 0)


def test_validation_depends_on_the_weights_alone(build):
    module = build()
    module.validation_step(batch_of(16), 0)
    first, module.logged = module.logged, []
    module._trainer.global_step = 77
    module.training_step(batch_of(16, seed=5), 77).backward()
    torch.manual_seed(123)
    module.validation_step(batch_of(16), 0)
    assert module.logged == first
    assert "drop" not in module.objective.calls[0]
    with torch.no_grad():
        next(module.network.parameters()).mul_(1.1)
    module.logged = []
    module.validation_step(batch_of(16), 0)
    assert module.logged != first


def test_validation_batches_draw_noise_of_their_own(build):
    module = build()
    module.validation_step(batch_of(16), 0)
    module.validation_step(batch_of(16), 1)
    first, second = module.objective.calls
    assert not torch.equal(first["noise"], second["noise"])
    assert not torch.equal(first["time"], second["time"])


@pytest.mark.parametrize("sizes", [(64,), (64, 64, 10), (3,)])
def test_noise_bins_average_back_to_the_loss(build, sizes):
    module = build()
    for i, size in enumerate(sizes):
        module.validation_step(batch_of(size, seed=i), i)
    loss = [(value, n) for name, value, n in module.logged if name == "val/loss"]
    bins = [(value, n) for name, value, n in module.logged if name.startswith("loss_by_noise/")]
    assert sum(n for _, n in bins) == sum(n for _, n in loss) == sum(sizes)
    mean = sum(value * n for value, n in loss) / sum(sizes)
    assert sum(value * n for value, n in bins) / sum(sizes) == pytest.approx(mean, rel=1e-5)


def test_each_loss_is_in_the_bin_of_its_noise(build):
    module = build()
    module.objective.loss = lambda denoiser, x0, noise, t, cond: denoiser.scheduler.log_snr(t)
    module.validation_step(batch_of(512), 0)
    borders = {
        "log_snr_below_-6": (-math.inf, -6),
        "log_snr_-6_to_-2": (-6, -2),
        "log_snr_-2_to_2": (-2, 2),
        "log_snr_2_to_6": (2, 6),
        "log_snr_above_6": (6, math.inf),
    }
    assert noise_bin_names() == list(borders)
    bins = {name.removeprefix("loss_by_noise/"): value for name, value, _ in module.logged if name != "val/loss"}
    assert len(bins) >= 4
    assert all(borders[name][0] < value < borders[name][1] for name, value in bins.items())


def test_only_the_network_is_trained(build):
    module = build()
    (group,) = module.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in module.network.parameters()}


def test_a_schedule_that_learns_moves_with_the_network(config):
    """Its shares get a gradient of their own loss, are stepped, and are part of what is averaged and saved."""
    nodes = {"scheduler": choice_of("scheduler", "learned"), "objective": choice_of("objective", "elbo")}
    _, module = built(OmegaConf.create({**OmegaConf.to_container(config), **nodes}), DataSpec((1, 8, 8), 10), 0.6)
    module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0, global_step=0)
    optimizer, t = module.configure_optimizers(), torch.tensor([0.25, 0.5], dtype=torch.float64)
    before = module.denoiser.scheduler.log_snr(t)
    for step in range(3):
        module._trainer.global_step = step
        optimizer.zero_grad()
        module.training_step(batch_of(16), step).backward()
        optimizer.step()
    assert module.denoiser.scheduler.logits.grad.abs().max() > 0
    assert not torch.equal(module.denoiser.scheduler.log_snr(t), before)
    assert "scheduler.logits" in module.trained.state_dict()


SCHEDULERS, PARAMETERIZATIONS, OBJECTIVES = (
    sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("scheduler", "parameterization", "objective")
)


PAIRS = list(product(SCHEDULERS, PARAMETERIZATIONS))


@pytest.mark.slow
# The objectives in turn, so that each meets every parameterization and every scheduler.
@pytest.mark.parametrize(
    ("scheduler", "parameterization", "objective"),
    [(s, p, OBJECTIVES[i % len(OBJECTIVES)]) for i, (s, p) in enumerate(PAIRS)],
)
def test_every_combination_takes_two_finite_steps(config, scheduler, parameterization, objective):
    chosen = {"scheduler": scheduler, "parameterization": parameterization, "objective": objective}
    nodes = {group: choice_of(group, name) for group, name in chosen.items()}
    changed = OmegaConf.create({**OmegaConf.to_container(config), **nodes})
    spec = DataSpec((1, 8, 8), 10)
    refused = {
        "zero terminal SNR": parameterization == "eps" and scheduler in ("flow", "zero_terminal"),
        "objective=elbo": scheduler == "learned" and objective != "elbo",
        "scheduler.betas": scheduler == "table",  # whose betas are the user's
        "network=cnn": objective == "cross_entropy",
    }
    for reason in (reason for reason, holds in refused.items() if holds):
        with pytest.raises(UserError, match=reason):
            built(changed, spec, 0.6)
        return
    _, module = built(changed, spec, 0.6)
    module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0, global_step=0)
    optimizer = module.configure_optimizers()
    before = [p.detach().clone() for p in module.network.parameters()]
    for step in range(2):
        module._trainer.global_step = step
        loss = module.training_step(batch_of(16), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        assert loss > 0
    after = list(module.network.parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("shape", [(2, 9, 7), (1, 6, 8, 5)])
def test_unconditional_and_other_shapes(build, shape):
    module = build(DataSpec(shape, None))
    loss = module.training_step(batch_of(4, shape=shape, classes=None), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert "label" not in module.objective.calls[0]


@pytest.mark.slow
def test_accumulation_changes_nothing(tmp_path):
    plan = [
        "network.dropout=0",
        "trainer.max_steps=10",
        "trainer.validate_every_n_steps=5",
        "trainer.log_every_n_steps=1",
        "checkpoint.every_n_steps=10",
    ]
    runs = {
        count: run_training(tmp_path / str(count), *plan, f"trainer.accumulate_grad_batches={count}")
        for count in (1, 2, 4)
    }
    wanted, rows = state(runs[1]), losses(runs[1])
    assert len(rows) == 12 and wanted["step"] == 10
    for count in (2, 4):
        found = state(runs[count])
        for name, value in wanted.items():
            if not name.startswith("optimizer"):
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=f"{name}, {count}")
        for row, reference in zip(losses(runs[count]), rows, strict=True):
            assert row.keys() == reference.keys()
            for key, value in reference.items():
                assert (row[key] == value) or float(row[key]) == pytest.approx(float(value), rel=1e-5), key


def test_an_optimizer_state_of_another_layout_steps_alike(build):
    """A checkpoint from before the U-Net's layout goes on as one of this layout."""
    weights = []
    for older in (False, True):
        module = build()
        optimizer = module.configure_optimizers()
        for step in range(2):
            module._trainer.global_step = step
            optimizer.zero_grad()
            module.training_step(batch_of(8), step).backward()
            optimizer.step()
            if step == 0:
                kept = optimizer.state_dict()
                for state in kept["state"].values() if older else ():
                    state.update(
                        {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
                    )
                optimizer = module.configure_optimizers()
                optimizer.load_state_dict(kept)
        weights.append([p.detach() for p in module.network.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
