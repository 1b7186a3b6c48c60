"""Features of a network that has learnt nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion.extractors.base import Extractor
from diffusion.networks import Classifier
from diffusion.random import seed_of

if TYPE_CHECKING:
    import pytorch_lightning as pl


class Random(Extractor):
    """The embedding of a `Classifier` whose weights are random, and the same everywhere, for 2-D and 3-D images.

    Random convolutions see texture and tone, and no data set has fitted them: Naeem et al. 2020 use them where the
    images are far from those that pretrained networks know.
    """

    name = "random"

    def __init__(self, datamodule: pl.LightningDataModule, cache: Path, device: torch.device | str = "cpu"):
        channels, *size = datamodule.spec.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("random extractor", "weights"))
            network = Classifier(channels, len(size), classes=1)
        super().__init__(network, network.output.in_features, device)

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        return self.network.embed(images.float() / 127.5 - 1), None
