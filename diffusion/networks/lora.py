"""Low-rank updates of a network's weights: the only ones that are trained, and merged when it is used."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from diffusion.errors import UserError
from diffusion.networks.layers import Attention, locked_of

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


class LowRank(nn.Module):
    """W + up down, W flattened to (out, in): up (out, rank) begins at 0, so that at first nothing changes.

    A convolution's `in` are its inputs times its places. Source: Hu et al. 2022, section 4.1, with alpha = rank.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        out, inputs = weight.shape[0], weight[0].numel()
        self.down = nn.Parameter(torch.randn(rank, inputs) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_updates(network: nn.Module, rank: int) -> None:
    """Give each convolution and each linear layer of attention an update of this rank, and freeze everything else.

    A layer whose weight is no larger than its update would be is left out. Raises UserError for a rank below 1, or
    where no layer is left.
    """
    if type(rank) is not int or rank < 1:
        raise UserError(f"finetune.lora={rank}: give a rank of 1 or more, as 4")
    network.requires_grad_(False)
    locked = locked_of(network)
    attention = {layer for block in network.modules() if isinstance(block, Attention) for layer in block.children()}
    found = False
    for layer in list(network.modules()):
        linear = isinstance(layer, nn.Linear) and layer in attention
        if id(getattr(layer, "weight", None)) in locked or not (linear or isinstance(layer, CONVOLUTIONS)):
            continue
        out, inputs = layer.weight.shape[0], layer.weight[0].numel()
        if rank * (out + inputs) < out * inputs:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
            found = True
    if not found:
        raise UserError(f"finetune.lora={rank}: the network has no weight of a larger rank: give a smaller one")


def merge_updates(network: nn.Module) -> nn.Module:
    """The network with each update added to its weight once and for all: plain layers, the same answers."""
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return network


def is_update(name: str) -> bool:
    """Whether a parameter of this name belongs to an update."""
    return ".parametrizations.weight.0." in name


def plain_name(name: str) -> str:
    """The name that a parameter has without updates."""
    return name.replace(".parametrizations.weight.original", ".weight")
