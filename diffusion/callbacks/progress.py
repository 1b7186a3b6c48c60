"""The progress bar: loss, images a second and the time left."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from diffusion.callbacks.budget import Budget
from diffusion.callbacks.metrics_log import MetricsLog

log = logging.getLogger(__name__)


class ProgressBar(pl.Callback):
    """A bar on a terminal; elsewhere, as in a job's log file, a line at most every `line_seconds`."""

    def __init__(self, budget: Budget, metrics: MetricsLog, line_seconds: float = 30.0):
        self.budget, self.metrics, self.line_seconds = budget, metrics, line_seconds
        self._bar: Progress | None = None
        self._next = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        console = Console(stderr=True)
        self._next = time.monotonic() + (0 if console.is_terminal else self.line_seconds)
        if trainer.is_global_zero and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), console=console
            )
            self._task = self._bar.add_task("training", total=1.0, text="")
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        now = time.monotonic()
        if now < self._next or not trainer.is_global_zero:
            return
        self._next = now + (0.2 if self._bar else self.line_seconds)
        self._show(trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close(trainer.global_step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close(trainer.global_step)

    def _close(self, step: int) -> None:
        if self._bar is not None:
            self._show(step)
            self._bar.stop()
            self._bar = None

    def _show(self, step: int) -> None:
        progress = self.budget.progress(step)
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, text=self._text(step, progress))
        else:
            log.info("%3.0f%%  %s", 100 * progress, self._text(step, progress))

    def _text(self, step: int, progress: float) -> str:
        parts = [f"step {step}" + (f"/{self.budget.max_steps}" if self.budget.max_steps else "")]
        latest = self.metrics.latest
        if "train/loss" in latest:
            parts += [f"loss {latest['train/loss']:.4f}", f"{latest['train/images_per_second']:.0f} images/s"]
        if "val/loss" in latest:
            parts.append(f"val {latest['val/loss']:.4f}")
        if progress > 0:
            left = self.budget.elapsed() * (1 - progress) / progress
            parts.append(f"{timedelta(seconds=round(left))} left")
        return "  ".join(parts)
