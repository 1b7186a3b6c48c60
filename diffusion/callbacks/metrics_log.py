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


class MetricsLog(pl.Callback):
    """Logs to every logger: each `every_n_steps` the mean loss since the last row, and each validation its results.

    The loss is summed on the device, and read only when a row or a checkpoint is written. Raises UserError when it is
    not finite, before a checkpoint can hold it.
    """

    def __init__(self, budget: Budget, batch_size: int, every_n_steps: int = 50):
        self.budget, self.batch_size, self.every_n_steps = budget, batch_size, every_n_steps
        self.latest: dict[str, float] = {}
        self._sum: Tensor | float = 0.0
        self._batches = 0
        self._since = (0.0, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"sum": float(self._sum), "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sum, self._batches = state_dict["sum"], state_dict["batches"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sum = torch.tensor(float(self._sum), dtype=torch.float32, device=pl_module.device)
        self._since = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._sum += outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._batches += 1
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (step % self.every_n_steps and not trainer.should_stop):
            return
        loss = float(self._sum) / self._batches
        now = time.monotonic()
        seconds, steps = now - self._since[0], step - self._since[1]
        self._sum.zero_()
        self._batches, self._since = 0, (now, step)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        speed = steps * self.batch_size / seconds
        self._write(trainer, {"train/loss": loss, "train/learning_rate": rate, "train/images_per_second": speed})
        self._check(loss, step)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._check(float(self._sum), trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation_since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        results = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values = {name: value for name, value in results.items() if name.startswith("val/")}
        by_noise = {name: value for name, value in results.items() if name.startswith("loss_by_noise/")}
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
