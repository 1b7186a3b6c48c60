"""What every choice of the group `control` is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.errors import UserError


class Control(ABC):
    """A map of the same places as the images, which the network is told: the first argument is the data's spec.

    source: the batch's key that it is made of.
    values: P, the values of a place.
    """

    source: str = "image"
    values: int = 1

    def __init__(self, spec: DataSpec):
        self.spec = spec

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, *S)"""
        return (self.values, *self.spec.shape[1:])

    @abstractmethod
    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The maps (B, P, *S) float32 of a batch, each of its own sample alone."""

    @abstractmethod
    def shown(self, controls: Tensor) -> Tensor:
        """Maps (B, P, *S) as images (B, 1 or C, *S) in [-1, 1] to look at."""


class Edges(Control):
    """What is drawn of each image's edges, 1 where a line is and 0 elsewhere; a subclass says how.

    Raises UserError for volumes.
    """

    def __init__(self, spec: DataSpec):
        super().__init__(spec)
        if len(spec.shape) != 3:
            raise UserError("this control is drawn in the plane, and the images are volumes: use control=mask or image")

    @abstractmethod
    def lines(self, grey: object) -> object:
        """A grey image (H, W), a float array in [0, 1] -> a bool array (H, W)."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        greys = ((batch["image"].float().mean(1) + 1) / 2).clamp(0, 1)
        drawn = [torch.from_numpy(self.lines(grey)) for grey in greys.cpu().numpy()]
        return torch.stack(drawn)[:, None].float().to(batch["image"].device)

    def shown(self, controls: Tensor) -> Tensor:
        return 2 * controls - 1
