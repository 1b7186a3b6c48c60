"""What turns images into features, in which sets of images are then compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion.codecs import fingerprint_of


class Features(NamedTuple):
    """Features (N, E) float32 of N images, and the probabilities (N, K) of K classes or None, on the CPU."""

    values: Tensor
    probabilities: Tensor | None


class Extractor(nn.Module, ABC):
    """A frozen network that gives each image E features, and where it tells K classes apart their probabilities.

    name: the choice of the group `extractor`.
    network: holds all weights; in evaluation mode, without gradients.
    features: E.
    reads_classes: whether its probabilities are those of the data's own classes.

    The choices are built as Choice(datamodule, cache, device, **keys of its yaml): datamodule is that of the real
    images, cache a folder for what is trained. Whatever is wrong with the choice raises UserError there.
    """

    name: str
    reads_classes: bool = False

    def __init__(self, network: nn.Module, features: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.network, self.features = network.requires_grad_(False), features
        self.to(device).eval()

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images uint8 (B, C, *S) on the network's device -> features (B, E) float32, probabilities (B, K) or None."""

    def receipt(self) -> dict[str, Any]:
        """What has to be known to get the same features again.

        name, features (E), weights (see `fingerprint_of`), resize (how, from what to what, or None), channels (what
        became of them), volumes (how 2-D features became those of a volume, or None), and classes (K) where there are.
        """
        return {
            "name": self.name,
            "features": self.features,
            "weights": fingerprint_of(self.network.state_dict()),
            "resize": None,
            "channels": "as they are",
            "volumes": None,
        }


@torch.no_grad()
def extract(
    extractor: Extractor, images: Tensor, batch_size: int = 256, on_batch: Callable[[int], None] | None = None
) -> Features:
    """The features of images uint8 (N, C, *S), N >= 1; no image has a part in those of another.

    `on_batch` is told after each batch how many images are done.
    """
    extractor.eval()
    device, found, done = next(extractor.parameters()).device, [], 0
    for part in images.split(batch_size):
        found.append([None if x is None else x.float().cpu() for x in extractor(part.to(device))])
        done += len(part)
        if on_batch is not None:
            on_batch(done)
    values, probabilities = zip(*found, strict=True)
    return Features(torch.cat(values), None if probabilities[0] is None else torch.cat(probabilities))
