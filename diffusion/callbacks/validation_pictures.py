"""Pictures of what is made of validation images, while a run trains, always of the same images."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_positive


class ValidationPictures(pl.Callback):
    """After a validation, at most every `every_n_steps` and at the end: n validation images, as `save` draws them.

    Writes samples/step_N.png; W&B gets it too.
    """

    name: str
    """Of the callback, in the config and on W&B."""

    def __init__(self, folder: Path, n: int = 8, every_n_steps: int = 1000):
        check_positive(**{f"callbacks.{self.name}.n": n, f"callbacks.{self.name}.every_n_steps": every_n_steps})
        self.folder, self.n, self.every_n_steps = folder, n, every_n_steps

    @abstractmethod
    def save(self, pl_module: pl.LightningModule, batch: dict[str, Tensor], step: int, path: Path) -> None:
        """Draw the images of the batch, and what the module makes of them."""

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: dict, batch_idx: int, *_: int
    ) -> None:
        # Here the averaged weights are in place, and the module is in evaluation mode.
        if (
            batch_idx
            or not trainer.is_global_zero
            or (trainer.global_step % self.every_n_steps and not trainer.should_stop)
        ):
            return
        split = trainer.datamodule.split("val")
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step_{trainer.global_step:07d}.png"
        self.save(pl_module, split[evenly_spaced(len(split), self.n)], trainer.global_step, path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key=f"samples/{self.name}", images=[str(path)], step=trainer.global_step)
