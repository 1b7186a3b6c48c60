"""Any network, told which pixels of x are unknown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoiser import Cond


class Incomplete(nn.Module):
    """F([x, unknown], c_noise, cond): one more channel, 1 where a pixel is unknown, which x holds as 0, else 0.

    Without cond["known"] all are known, as wherever images are drawn. That the network is told is what lets it learn
    from incomplete images what it answers for whole ones, as far as some of the training images are whole, or lack
    little: an image without holes is else one such as it never saw. Source of the mask as an input: Daras et al. 2023
    (Ambient Diffusion), section 3, who besides hide known pixels at random, so as to learn where no image is whole.

    Args:
        network: (in_channels, **options) -> the network.
        in_channels: of x.
    """

    def __init__(self, network: Callable[..., nn.Module], in_channels: int, size: Sequence[int], **options: Any):
        super().__init__()
        self.network = network(in_channels=in_channels + 1, size=size, **options)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, in_channels, *S), c_noise (B,) -> (B, out_channels, *S); cond["known"] bool (B, 1, *S)."""
        unknown = ~cond["known"] if cond and "known" in cond else torch.zeros_like(x[:, :1])
        return self.network(torch.cat([x, unknown.to(x.dtype)], 1), c_noise, cond)
