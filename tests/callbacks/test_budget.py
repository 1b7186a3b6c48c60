"""Where a run ends, and how the learning rate follows the limit that ends it."""

import math

import pytest
import pytorch_lightning as pl

from diffusion.callbacks import Budget, LearningRate
from tests.callbacks.toy import Clock, Toy, fit


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("diffusion.callbacks.budget.time", clock)
    return clock


class Slow(Toy):
    """Each training step takes ten seconds."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock.now += 10
        return super().training_step(batch, batch_idx)


def test_steps_end_the_run_after_a_last_validation():
    module = Toy()
    trainer = fit(module, [Budget(5, None)])
    assert trainer.global_step == 5
    assert len(module.seen) == 1


def test_steps_are_optimizer_steps():
    module = Toy()
    batches = []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: batches.append(batch_idx) or step(batch, batch_idx)
    trainer = fit(module, [Budget(3, None)], accumulate_grad_batches=4, val_check_interval=1000)
    assert trainer.global_step == 3
    assert len(batches) == 12


def test_time_ends_the_run(clock):
    assert fit(Slow(clock), [Budget(None, 35.0)]).global_step == 4


def test_the_first_limit_reached_ends_the_run(clock):
    assert fit(Slow(clock), [Budget(3, 100.0)]).global_step == 3
    assert fit(Slow(clock), [Budget(100, 30.0)]).global_step == 3


def test_time_counts_over_restarts_and_idle_time_does_not(clock):
    first = Budget(None, 60.0)
    clock.now += 1000  # before training starts
    fit(Slow(clock), [first], steps=4)
    assert first.state_dict() == {"elapsed": 40.0, "ended": False}
    second = Budget(None, 60.0)
    second.load_state_dict({"elapsed": 40.0, "ended": False})
    clock.now += 5000
    assert second.elapsed() == 40.0
    assert fit(Slow(clock), [second]).global_step == 2
    assert second.elapsed() == 60.0


def test_progress_follows_the_nearer_limit():
    budget = Budget(100, 60.0)
    assert budget.progress(0) == 0
    assert budget.progress(25) == 0.25
    budget.load_state_dict({"elapsed": 30.0, "ended": False})
    assert budget.progress(25) == 0.5
    assert budget.progress(75) == 0.75
    assert budget.progress(1000) == 1


@pytest.mark.parametrize(
    ("step", "elapsed", "finished"), [(99, 59.9, False), (100, 0.0, True), (0, 60.0, True), (200, 99.0, True)]
)
def test_reached(step, elapsed, finished):
    budget = Budget(100, 60.0)
    budget.load_state_dict({"elapsed": elapsed, "ended": False})
    assert budget.reached(step) is finished


def test_an_early_end_is_kept_in_the_checkpoint():
    ended, again = Budget(100, 60.0), Budget(1000, 600.0)
    assert not ended.reached(5)
    ended.end()
    again.load_state_dict(ended.state_dict())
    assert ended.reached(5) and again.reached(5)


def test_a_checkpoint_without_the_key_of_an_early_end():
    budget = Budget(100, 60.0)
    budget.load_state_dict({"elapsed": 30.0})
    assert budget.elapsed() == 30.0 and not budget.reached(50)


def test_no_limit_is_never_reached():
    assert not Budget(None, None).reached(10**9)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.01),
        (49, 0.5 * (0.1 + 0.45 * (1 + math.cos(math.pi * 0.049)))),
        (100, 0.1 + 0.45 * (1 + math.cos(math.pi * 0.1))),
        (500, 0.55),
        (1000, 0.1),
        (2000, 0.1),
    ],
)
def test_rate_by_steps(step, factor):
    rate = LearningRate(Budget(1000, None), warmup_steps=100, final=0.1)
    assert rate.factor(step) == pytest.approx(factor, rel=1e-4)


def test_rate_follows_time_where_time_is_the_limit():
    budget = Budget(None, 60.0)
    rate = LearningRate(budget, warmup_steps=1, final=0.0)
    expected = {0.0: 1.0, 20.0: 0.75, 30.0: 0.5, 40.0: 0.25, 60.0: 0.0}  # cos(pi/3) = 1/2
    for elapsed, factor in expected.items():
        budget.load_state_dict({"elapsed": elapsed, "ended": False})
        assert rate.factor(5) == pytest.approx(factor, abs=1e-12)


def test_constant_rate():
    rate = LearningRate(Budget(10, None), warmup_steps=0, final=1.0)
    assert {rate.factor(step) for step in range(11)} == {1.0}


def test_every_parameter_group_keeps_its_own_rate():
    class Rates(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, *args):
            self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    rates, budget = Rates(), Budget(4, None)
    fit(Toy(lr=0.1), [budget, LearningRate(budget, warmup_steps=2, final=0.0), rates])
    # warm-up 1/2, 1, 1, 1 times the cosine at 0, 1/4, 1/2, 3/4 of the run
    factors = [0.5, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    for seen, factor in zip(rates.seen, factors, strict=True):
        assert seen == pytest.approx([0.1 * factor, 0.01 * factor])
