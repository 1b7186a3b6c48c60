"""Where the samples of a batch stand in the global batch of an optimizer step."""

from __future__ import annotations

import pytorch_lightning as pl


def places(module: pl.LightningModule, batch_idx: int, count: int) -> tuple[int, int]:
    """The place of this process's first sample among those of the whole optimizer step, and how many those are.

    The step's samples are dealt to the processes and accumulated batches in slices of `count`, as
    datamodules/order.py deals them.
    """
    trainer = module.trainer
    micro = batch_idx % trainer.accumulate_grad_batches
    slices = trainer.accumulate_grad_batches * trainer.world_size
    return (micro * trainer.world_size + module.global_rank) * count, count * slices
