"""Some pixels only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffusion.operators.base import Operator
from diffusion.operators.masks import unknown
from diffusion.random import generator


@dataclass(frozen=True)
class Inpainting(Operator):
    """The pixels outside a named mask (see `masks.unknown`), (B, C, pixels); `seed` is that of a random one.

    Raises UserError for a mask or a share that `masks.unknown` refuses.
    """

    mask: str = "random"
    share: float | None = 0.8
    seed: int = 0
    seen_as = "masked"

    def __post_init__(self) -> None:
        unknown(self.mask, (2, 2), self.share)

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(2)[..., self._known(images.shape[2:]).to(images.device)]

    def picture(self, measured: Tensor, shape: Sequence[int]) -> Tensor:
        return self.adjoint(measured, shape)

    def _known(self, size: Sequence[int]) -> Tensor:
        return (~unknown(self.mask, size, self.share, generator("inpainting", self.seed))).flatten().nonzero().flatten()
