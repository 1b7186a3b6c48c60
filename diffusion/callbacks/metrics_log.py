"""What a run writes down while it trains, at the exact step, before the checkpoint of that step."""

from __future__ import annotations

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.callbacks.budget import Budget
from diffusion.errors import UserError
from diffusion.processes import averaged


class MetricsLog(pl.Callback):
    """Logs to every logger: each `every_n_steps` the mean losses since the last row, and each validation its results.

    A step's losses are its "terms", where the module names some, else its loss. They are summed on the device, and
    read, and averaged over the processes, only when a row or a checkpoint is written. Raises UserError when the loss
    is not finite, before a checkpoint can hold it.
    """

    def __init__(self, budget: Budget, batch_size: int, every_n_steps: int = 50):
        self.budget, self.batch_size, self.every_n_steps = budget, batch_size, every_n_steps
        self.latest: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._since = (0.0, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": averaged(self._sums), "batches": dict(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums = {name: torch.tensor(value, dtype=torch.float32) for name, value in state_dict["sums"].items()}
        self._steps = dict(state_dict["batches"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sums = {name: value.to(pl_module.device) for name, value in self._sums.items()}
        self._since = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        parts = trainer.accumulate_grad_batches
        # Lightning has divided the loss by their number.
        terms = outputs.get("terms") or {"loss": outputs["loss"].detach() * parts}
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float() / parts
        if (batch_idx + 1) % parts:
            return
        self._steps |= {name: self._steps.get(name, 0) + 1 for name in terms}
        step = trainer.global_step
        if step % self.every_n_steps and not trainer.should_stop:
            return
        means = {name: value / self._steps[name] for name, value in averaged(self._sums).items()}
        now = time.monotonic()
        seconds, steps = now - self._since[0], step - self._since[1]
        self._sums, self._steps, self._since = {}, {}, (now, step)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        speed = steps * self.batch_size / seconds
        losses = {f"train/{name}": value for name, value in means.items()}
        self._write(trainer, losses | {"train/learning_rate": rate, "train/images_per_second": speed})
        self._check(means["loss"], step)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._check(sum(averaged(self._sums).values()), trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation_since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        results = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values = {name: value for name, value in results.items() if name.startswith("val/")}
        by_noise = {name: value for name, value in results.items() if "_by_noise/" in name}
        values |= {name: value for name, value in by_noise.items() if not math.isnan(value)}
        self._write(trainer, values)
        # Validation is no part of the training speed.
        self._since = (self._since[0] + time.monotonic() - self._validation_since, self._since[1])

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}: lower optimizer.lr, or use accelerator.precision=32-true; "
                "what was saved before is as it was"
            )

    def _write(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        self.latest |= values
        for logger in trainer.loggers:
            logger.log_metrics(values | {"elapsed_seconds": self.budget.elapsed()}, step=trainer.global_step)
