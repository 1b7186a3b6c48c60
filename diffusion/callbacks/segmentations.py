"""Pictures of the masks that a segmenter finds, while it trains."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

from diffusion.callbacks.validation_pictures import ValidationPictures
from diffusion.tasks.pictures import save_rows
from diffusion.tasks.sample import to_uint8
from diffusion.tasks.segment_figure import painted, widest


class Segmentations(ValidationPictures):
    """Rows of images, their masks, and those found."""

    name = "segmentations"

    def save(self, pl_module: pl.LightningModule, batch: dict[str, Tensor], step: int, path: Path) -> None:
        found = pl_module.segmenter.logits(batch["image"].to(pl_module.device)).argmax(1).cpu()
        truth = batch["mask"][:, 0].long().cpu()
        images, truth, found = widest(truth, to_uint8(batch["image"]).cpu(), truth, found)
        save_rows({"image": images, "truth": painted(truth), "found": painted(found)}, path)
