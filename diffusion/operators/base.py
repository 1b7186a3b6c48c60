"""What an operator is: a linear map from images to what is measured of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.errors import UserError


class Operator(ABC):
    """y = A x, of each sample and alike for all. Linear, and differentiable twice, by which its adjoint comes for free.

    seen_as: what the picture of a measurement is called.
    """

    seen_as = "measured"

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, *S) -> measurements (B, ...), without noise."""

    @abstractmethod
    def picture(self, measured: Tensor, shape: Sequence[int]) -> Tensor:
        """What the measurements (B, ...) show without any model, as images (B, *shape); 0 where they say nothing."""

    def interpolated(self, measured: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
        """Simple reconstructions beside `picture`, by name, images (B, *shape)."""
        return {}

    def check(self, shape: Sequence[int]) -> None:
        """Raises UserError where images of `shape` (C, *S) cannot be measured so."""
        return

    def adjoint(self, measured: Tensor, shape: Sequence[int]) -> Tensor:
        """A^T y of measurements (B, ...), images (B, *shape)."""
        with torch.enable_grad():
            images = torch.zeros(len(measured), *shape, dtype=measured.dtype, device=measured.device).requires_grad_()
            (found,) = torch.autograd.grad(self(images), images, measured)
        return found


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raises UserError unless low < value < high."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise UserError(f"operator.{name}={value}: give a number above {low:g}, below {high:g}")
