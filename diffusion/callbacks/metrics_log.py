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
    """Logs to every logger: each `every_n_steps` the mean losses since the last row, and each validation its results.

    A step's losses are its "terms", where the module names some, else its loss. They are summed on the device, and
    read only when a row or a checkpoint is written. Raises UserError when the loss is not finite, before a checkpoint
    can hold it.
    """

    def __init__(self, budget: Budget, batch_size: int, every_n_steps: int = 50):
        self.budget, self.batch_size, self.every_n_steps = budget, batch_size, every_n_steps
        self.latest: dict[str, float] = {}
        self._sums: dict[str, Tensor | float] = {}
        self._batches: dict[str, int] = {}
        self._since = (0.0, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {name: float(value) for name, value in self._sums.items()}, "batches": dict(self._batches)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums, self._batches = dict(state_dict["sums"]), dict(state_dict["batches"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sums = {
            name: torch.tensor(float(value), dtype=torch.float32, device=pl_module.device)
            for name, value in self._sums.items()
        }
        self._since = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning has divided the loss by the number of accumulated batches.
        terms = outputs.get("terms") or {"loss": outputs["loss"].detach() * trainer.accumulate_grad_batches}
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.float()
            self._batches[name] = self._batches.get(name, 0) + 1
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (step % self.every_n_steps and not trainer.should_stop):
            return
        means = {name: float(value) / self._batches[name] for name, value in self._sums.items()}
        now = time.monotonic()
        seconds, steps = now - self._since[0], step - self._since[1]
        self._sums, self._batches, self._since = {}, {}, (now, step)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        speed = steps * self.batch_size / seconds
        losses = {f"train/{name}": value for name, value in means.items()}
        self._write(trainer, losses | {"train/learning_rate": rate, "train/images_per_second": speed})
        self._check(means["loss"], step)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._check(float(sum(self._sums.values())), trainer.global_step)

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
