"""The features that FID, KID and the Inception score were defined with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion.errors import UserError
from diffusion.extractors.planar import Planar, check_channels
from diffusion.extractors.weights import loading, optional, read_weights

if TYPE_CHECKING:
    import pytorch_lightning as pl

LAYERS = (64, 192, 768, 2048)
CLASSES = 1008
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


class Inception(Planar):
    """Inception-v3 as in TensorFlow in 2015 (Heusel et al. 2017), through torch-fidelity and with its resizing.

    Probabilities are those of the 1008 outputs without their bias, as in the Inception score (Salimans et al. 2016).
    The weights are downloaded once, into the cache of torch.hub.

    features: of the layer with 64, 192, 768 or 2048 channels, as its mean over all positions; 2048 is usual. A Fréchet
        distance needs more images than features.
    path: a file of the weights, in place of the download.

    Raises UserError for another number of features, images that are not of one or three channels, a library that is
    not installed, and weights that cannot be had.
    """

    name = "inception"

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        cache: Path,
        device: torch.device | str = "cpu",
        features: int = 2048,
        path: str | None = None,
    ):
        if features not in LAYERS:
            raise UserError(f"extractor.features={features}: choose one of {', '.join(map(str, LAYERS))}")
        check_channels(self.name, datamodule)
        with optional(self.name, "torch-fidelity", 'pip install -e ".[inception]"'):
            from torch_fidelity import FeatureExtractorInceptionV3
        with loading(self.name, "Inception-v3", path, URL):
            if path is not None:
                # The library unpickles whatever a file holds.
                read_weights(path)
            layers = [str(features), "logits_unbiased"]
            network = FeatureExtractorInceptionV3("inception-v3-compat", layers, path, verbose=False)
        super().__init__(datamodule, network, features, ("bilinear, TF1-compatible", network.INPUT_IMAGE_SIZE), device)

    def planar(self, images: Tensor) -> tuple[Tensor, Tensor]:
        values, logits = self.network(images)
        return values, logits.softmax(1)

    def receipt(self) -> dict[str, Any]:
        return super().receipt() | {"classes": CLASSES}
