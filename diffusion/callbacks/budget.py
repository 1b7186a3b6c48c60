"""How long a run may train: the first limit reached ends it."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from diffusion.errors import UserError
from diffusion.processes import largest


class Budget(pl.Callback):
    """Ends training after max_steps optimizer steps or max_seconds of training, whichever comes first, or by `end`.

    The time already used is in the checkpoint, so it counts over restarts, and so is an early end; a final validation
    follows the last step. Several processes go by the clock of the one that has trained longest, so that they end, and
    lower their learning rate, together.
    """

    def __init__(self, max_steps: int | None, max_seconds: float | None):
        self.max_steps, self.max_seconds = max_steps, max_seconds
        self.ended = False
        self._used = 0.0
        self._since: float | None = None
        self._agreed: float | None = None

    @classmethod
    def of(cls, trainer: DictConfig) -> Budget:
        """The limits in a config's section `trainer`. Raises UserError for a time that is none."""
        return cls(trainer.max_steps, _seconds(trainer.max_time))

    def end(self) -> None:
        """Whatever the limits, the run has reached its end."""
        self.ended = True

    def elapsed(self) -> float:
        """Seconds of training so far, over all restarts."""
        return self._used + (time.monotonic() - self._since if self._since is not None else 0.0)

    def progress(self, step: int) -> float:
        """The share of the run that is done after `step` steps, in [0, 1], by the limit that is nearer."""
        return min(1.0, self._share(step))

    def reached(self, step: int) -> bool:
        """Whether a run is finished after `step` steps."""
        return self.ended or self._share(step) >= 1

    def _share(self, step: int) -> float:
        by_steps = step / self.max_steps if self.max_steps else 0.0
        elapsed = self.elapsed() if self._agreed is None else self._agreed
        by_time = elapsed / self.max_seconds if self.max_seconds else 0.0
        return max(by_steps, by_time)

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed(), "ended": self.ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints that were written before a run could be ended have no such key.
        self._used, self.ended = state_dict["elapsed"], state_dict.get("ended", False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.monotonic()
        self._agree(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._agree(trainer)
        trainer.should_stop = self.reached(trainer.global_step)

    def _agree(self, trainer: pl.Trainer) -> None:
        if self.max_seconds and trainer.world_size > 1:
            self._agreed = largest(self.elapsed())


def _seconds(max_time: str | None) -> float | None:
    """DD:HH:MM:SS as seconds."""
    if max_time is None:
        return None
    parts = max_time.split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts) or not any(int(part) for part in parts):
        raise UserError(f"trainer.max_time={max_time}: give DD:HH:MM:SS, for example 00:00:10:00 for ten minutes")
    days, hours, minutes, seconds = (int(part) for part in parts)
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
