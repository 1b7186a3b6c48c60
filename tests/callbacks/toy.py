"""A LightningModule small enough to check by hand, and a clock that the test moves."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class Clock(SimpleNamespace):
    """Stands in for the module `time`."""

    def __init__(self):
        super().__init__(now=100.0)

    def monotonic(self) -> float:
        return self.now


class Toy(pl.LightningModule):
    """A linear network under SGD whose gradient is its input, and a frozen part that is no network."""

    def __init__(self, dtype: torch.dtype = torch.float32, val_losses: list[float] | None = None, lr: float = 0.1):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(3, 1, dtype=dtype)
        self.frozen = nn.Linear(2, 2)
        self.dtype_, self.lr, self.val_losses = dtype, lr, val_losses or []
        self.seen: list[dict[str, Tensor]] = []

    @property
    def trained(self) -> nn.Module:
        return self.network

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch.to(self.dtype_)).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(weights_of(self))
        self.log("val/loss", self.val_losses.pop(0) if self.val_losses else 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"params": [self.network.weight]}, {"params": [self.network.bias], "lr": self.lr / 10}], lr=self.lr
        )


class Batches:
    """Batches without end, which differ from step to step and go on where the trainer is."""

    trainer: pl.Trainer

    def __iter__(self) -> Iterator[Tensor]:
        step = self.trainer.global_step * self.trainer.accumulate_grad_batches
        while True:
            yield torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            step += 1


def weights_of(module: Toy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.network.named_parameters()}


def fit(module: Toy, callbacks: list[pl.Callback], steps: int | None = None, ckpt_path=None, **options) -> pl.Trainer:
    """Train, and validate on one batch; `steps` is left to a Budget where None."""
    options = {"val_check_interval": 1000, "logger": False, "log_every_n_steps": 1} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        max_epochs=-1,
        max_steps=-1 if steps is None else steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    train = Batches()
    train.trainer = trainer
    trainer.fit(module, train, torch.ones(1, 4, 3), ckpt_path=ckpt_path, weights_only=True)
    return trainer
