"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.processes import dealt_like, whole


class EMA(pl.Callback):
    """Keeps a float32 average of what the module calls `trained`; validation and previews see it, not the weights.

    After step n: average += (1 - d) (weights - average), d = min(decay, (1 + n) / (10 + n)), so that the average
    forgets the start. It is in the checkpoint under "ema", together with the buffers as they are: a codebook is an
    average already.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay}: give a number from 0 to below 1")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._seen = 0
        self._weights: dict[str, Tensor] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self.average:
            self.average = {name: p.detach().float().clone() for name, p in pl_module.trained.named_parameters()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.average = {name: dealt_like(self.average[name], p) for name, p in pl_module.trained.named_parameters()}
        self._seen = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step == self._seen:
            return  # an accumulated batch: the optimizer has not stepped
        self._seen = trainer.global_step
        decay = min(self.decay, (1 + self._seen) / (10 + self._seen))
        weights = [p.float() for p in pl_module.trained.parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """The network with the averaged weights; its own are put back even if the body raises."""
        if self._weights is not None:  # validation has swapped them already
            yield
            return
        self._swap_in(network)
        try:
            yield
        finally:
            self._swap_out(network)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap_in(pl_module.trained)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap_out(pl_module.trained)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module.trained)

    @torch.no_grad()
    def _swap_in(self, network: nn.Module) -> None:
        self._weights = {name: p.detach().clone() for name, p in network.named_parameters()}
        _copy(self.average, network)

    @torch.no_grad()
    def _swap_out(self, network: nn.Module) -> None:
        if self._weights is not None:
            _copy(self._weights, network)
            self._weights = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        average = {name: whole(value) for name, value in self.average.items()}
        buffers = {name: value for name, value in pl_module.trained.state_dict().items() if name not in average}
        checkpoint["ema"] = average | buffers

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        names = [name for name, _ in pl_module.trained.named_parameters()]
        self.average = {name: checkpoint["ema"][name].float().clone() for name in names}


def _copy(source: dict[str, Tensor], network: nn.Module) -> None:
    for name, p in network.named_parameters():
        p.copy_(source[name])
