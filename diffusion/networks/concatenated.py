"""Any network, told an image of the same places as further channels of x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoiser import Cond
from diffusion.errors import UserError


class Concatenated(nn.Module):
    """F([x, control], c_noise, cond). Source: Saharia et al. 2022 (SR3), section 2.3.

    The control is told also where the class is dropped, so that guidance leads towards the class alone.

    Args:
        network: (in_channels, size, **options) -> the network.
        control: (P, *S) of what it is told; each side of S is a multiple of that of `size`, which smaller latents have.
        in_channels, size: of x.
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
        control: Sequence[int],
        in_channels: int,
        size: Sequence[int],
        **options: Any,
    ):
        super().__init__()
        self.fold = Fold(control, size)
        self.network = network(in_channels=in_channels + self.fold.channels, size=size, **options)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, in_channels, *size), c_noise (B,) -> (B, out_channels, *size); cond["control"] is (B, P, *S)."""
        return self.network(torch.cat([x, self.fold(control_of(cond)).to(x.dtype)], 1), c_noise, cond)


class Fold(nn.Module):
    """(B, P, *S) -> (B, channels, *s): blocks of S / s values become channels, so that nothing is lost.

    Raises UserError where S is no multiple of s.
    """

    def __init__(self, shape: Sequence[int], size: Sequence[int]):
        super().__init__()
        if any(side % small for side, small in zip(shape[1:], size, strict=True)):
            sides = ["x".join(map(str, each)) for each in (shape[1:], size)]
            raise UserError(f"a control of {sides[0]} does not fit {sides[1]}: each side has to be a multiple")
        self.factors = [side // small for side, small in zip(shape[1:], size, strict=True)]
        self.channels = shape[0]
        for factor in self.factors:
            self.channels *= factor

    def forward(self, control: Tensor) -> Tensor:
        if max(self.factors) == 1:
            return control
        for axis, factor in enumerate(self.factors):
            control = control.unflatten(2 + 2 * axis, (-1, factor))  # (B, P, s, f, s, f, ...)
        axes = range(len(self.factors))
        order = [0, 1, *(3 + 2 * axis for axis in axes), *(2 + 2 * axis for axis in axes)]
        return control.permute(order).flatten(1, 1 + len(self.factors))


def control_of(cond: Cond | None) -> Tensor:
    """cond["control"]. Raises UserError where there is none."""
    if not cond or "control" not in cond:
        raise UserError("this model makes images for a control (a mask, edges, ...), and is given none here")
    return cond["control"]
