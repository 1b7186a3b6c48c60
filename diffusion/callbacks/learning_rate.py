"""The learning rate over a run."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl

from diffusion.callbacks.budget import Budget


class LearningRate(pl.Callback):
    """A linear warm-up, times a cosine from 1 down to `final` over the run's budget, be it steps or time.

    lr = lr_0 min(1, (step + 1) / warmup_steps) (final + (1 - final) (1 + cos(pi progress)) / 2); final = 1 keeps the
    rate. It holds no state: the rate is a function of the step and of the share of the budget used.
    """

    def __init__(self, budget: Budget, warmup_steps: int = 100, final: float = 0.0):
        self.budget, self.warmup_steps, self.final = budget, warmup_steps, final

    def factor(self, step: int) -> float:
        """What the initial rate is multiplied with in the step after `step` steps."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cosine = (1 + math.cos(math.pi * self.budget.progress(step))) / 2
        return warm * (self.final + (1 - self.final) * cosine)

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        factor = self.factor(trainer.global_step)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("lr_0", group["lr"]) * factor
