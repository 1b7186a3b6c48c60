"""Pictures of what an autoencoder gives back, while it trains, always of the same images."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch

from diffusion.tasks.pictures import save_comparison
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_positive, to_uint8


class Reconstructions(pl.Callback):
    """After a validation, at most every `every_n_steps` and at the end: n validation images and what became of them.

    Writes samples/step_N.png, rows of originals, reconstructions and differences; W&B gets it too.
    """

    def __init__(self, folder: Path, n: int = 10, every_n_steps: int = 1000):
        check_positive(**{"callbacks.reconstructions.n": n, "callbacks.reconstructions.every_n_steps": every_n_steps})
        self.folder, self.n, self.every_n_steps = folder, n, every_n_steps

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
        images = split[evenly_spaced(len(split), self.n)]["image"].to(pl_module.device)
        found = pl_module.network(images, None).images.float()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step_{trainer.global_step:07d}.png"
        title = f"validation images, step {trainer.global_step}"
        save_comparison({title: (to_uint8(images).cpu(), to_uint8(found).cpu())}, path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key="samples/reconstructions", images=[str(path)], step=trainer.global_step)
