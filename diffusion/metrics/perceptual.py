"""Distances of features, differentiable, for training an autoencoder: the choices of the group `perceptual`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.extractors import domain_classifier

if TYPE_CHECKING:
    import pytorch_lightning as pl

NETS = ("alex", "vgg", "squeeze")
SMALLEST = 64
"""Pixels of the images that LPIPS was fitted on; the first layers of its networks leave nothing of 28."""


class ClassifierDistance(nn.Module):
    """sum_l mean_p |u_l(a)_p - u_l(b)_p|^2 / L, u_l the features of level l of L, of unit length at each position p.

    Eq. 1 of Zhang et al. 2018 without learned weights, and the mean over levels for their sum: in [0, 4]. The features
    are those of a domain classifier of its own, not the one that judges reconstructions; it is trained here unless the
    cache holds it, for `steps` steps if that is given. Raises UserError for data without labels.
    """

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        cache: Path,
        device: torch.device | str = "cpu",
        steps: int | None = None,
    ):
        super().__init__()
        self.classifier = domain_classifier(
            datamodule, cache, device, purpose="perceptual", **({} if steps is None else {"steps": steps})
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a and b (B, C, *S) float32 in [-1, 1] -> distances (B,); the gradient goes to b alone."""
        with torch.no_grad():
            targets = [unit(features) for features in self.classifier.features(a)]
        levels = [
            (target - unit(features)).square().sum(1).flatten(1).mean(1)
            for target, features in zip(targets, self.classifier.features(b), strict=True)
        ]
        return torch.stack(levels).mean(0)


def unit(features: Tensor) -> Tensor:
    """Features (B, C, *S) with length 1 over the channels at each position, float32 even from lower precision."""
    # Not F.normalize: its gradient is boundless where the features vanish.
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + 1e-8).rsqrt()


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018, eq. 1), with the learned weights, by torchmetrics.

    net: alex, vgg or squeeze, trained on photographs; its weights are downloaded once, into the cache of torch.hub.
    cache: not used; the other choices of the group need it.

    Grey images are shown in all three channels, and images with a side below 64 are enlarged, to a least side of 64.
    Raises UserError for another net, images that are not 2-D of one or three channels, and weights that cannot be had.
    """

    def __init__(
        self, datamodule: pl.LightningDataModule, cache: Path, device: torch.device | str = "cpu", net: str = "alex"
    ):
        super().__init__()
        channels, *size = datamodule.spec.shape
        if net not in NETS:
            raise UserError(f"perceptual.net={net}: choose one of {', '.join(NETS)}")
        if len(size) != 2 or channels not in (1, 3):
            raise UserError(
                f"perceptual=lpips takes 2-D images of one or three channels, not {tuple(datamodule.spec.shape)} as in "
                f"{datamodule.source}: choose perceptual=classifier or perceptual=none"
            )
        self.network = _network(net).to(device)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a and b (B, C, H, W) float32 in [-1, 1] -> distances (B,), 0 or more."""
        return self.network(self._seen(a), self._seen(b)).flatten()

    def _seen(self, images: Tensor) -> Tensor:
        images = images.float().expand(-1, 3, -1, -1)
        factor = SMALLEST / min(images.shape[2:])
        if factor <= 1:
            return images
        size = [round(factor * side) for side in images.shape[2:]]
        return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _network(net: str) -> nn.Module:
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    try:
        with torch.random.fork_rng(devices=[]):
            # The metric itself refuses values outside [-1, 1], which a decoder under training gives.
            return LearnedPerceptualImagePatchSimilarity(net).net.eval().requires_grad_(False)
    # What the download and what reads its file raise has no common base.
    except Exception as error:
        raise UserError(
            f"perceptual=lpips: the weights of its network, {net}, could not be downloaded or read "
            f"({' '.join(str(error).split())}): choose perceptual=classifier or perceptual=none"
        ) from error
