"""Some lines of the Fourier transform, as an accelerated MR scan measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.operators.base import Operator, check_between
from diffusion.random import generator


@dataclass(frozen=True)
class Fourier(Operator):
    """Lines of the orthonormal Fourier transform over S, real and imaginary parts: (B, C, 2, lines, ...).

    A line is a frequency of the first axis of S. Kept is the share 1 / acceleration of them: the `center` share of all,
    which are the lowest, and others drawn by `seed`. The lines are the same for all images. Source: the masks of
    Zbontar et al. 2018 (fastMRI), section 5. Raises UserError for values out of range.
    """

    acceleration: float = 3.0
    center: float = 0.15
    seed: int = 0
    seen_as = "zero-filled"

    def __post_init__(self) -> None:
        check_between("acceleration", self.acceleration, 1, 1000)
        check_between("center", self.center, 0, 1)

    def __call__(self, images: Tensor) -> Tensor:
        axes = tuple(range(2, images.ndim))
        lines = self.lines(images.shape[2]).to(images.device)
        return torch.view_as_real(torch.fft.fftn(images, dim=axes, norm="ortho")[:, :, lines]).movedim(-1, 2)

    def lines(self, side: int) -> Tensor:
        """The frequencies that are kept, int64, in the order of the transform."""
        kept = max(1, round(side / self.acceleration))
        lowest = min(kept, max(1, round(self.center * side)))
        order = torch.fft.fftfreq(side).abs().argsort(stable=True)
        others = order[lowest:][torch.randperm(side - lowest, generator=generator("fourier", self.seed))]
        return torch.cat([order[:lowest], others[: kept - lowest]]).sort().values

    def picture(self, measured: Tensor, shape: Sequence[int]) -> Tensor:
        return self.adjoint(measured, shape)
