"""Pictures of the masks that a segmenter finds, while it trains, always of the same images."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch

from diffusion.tasks.pictures import save_rows
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_positive, to_uint8
from diffusion.tasks.segment_figure import painted, widest


class Segmentations(pl.Callback):
    """After a validation, at most every `every_n_steps` and at the end: validation images, their masks, those found.

    Writes samples/step_N.png; W&B gets it too.
    """

    def __init__(self, folder: Path, n: int = 8, every_n_steps: int = 1000):
        check_positive(**{"callbacks.segmentations.n": n, "callbacks.segmentations.every_n_steps": every_n_steps})
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
        shown = split[evenly_spaced(len(split), self.n)]
        found = pl_module.segmenter.logits(shown["image"].to(pl_module.device)).argmax(1).cpu()
        truth = shown["mask"][:, 0].long().cpu()
        images, truth, found = widest(truth, to_uint8(shown["image"]).cpu(), truth, found)
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step_{trainer.global_step:07d}.png"
        save_rows({"image": images, "truth": painted(truth), "found": painted(found)}, path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image(key="samples/segmentations", images=[str(path)], step=trainer.global_step)
