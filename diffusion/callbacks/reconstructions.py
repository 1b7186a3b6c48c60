"""Pictures of what an autoencoder gives back, while it trains."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

from diffusion.callbacks.validation_pictures import ValidationPictures
from diffusion.tasks.pictures import save_comparison
from diffusion.tasks.sample import to_uint8


class Reconstructions(ValidationPictures):
    """Rows of originals, reconstructions and differences."""

    name = "reconstructions"

    def __init__(self, folder: Path, n: int = 10, every_n_steps: int = 1000):
        super().__init__(folder, n, every_n_steps)

    def save(self, pl_module: pl.LightningModule, batch: dict[str, Tensor], step: int, path: Path) -> None:
        images = batch["image"].to(pl_module.device)
        found = pl_module.network(images, None).images.float()
        save_comparison({f"validation images, step {step}": (to_uint8(images).cpu(), to_uint8(found).cpu())}, path)
