"""U-Nets of the same work by each library: matched in multiply-adds; parameters differ, by up to 40% of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Match:
    """ours: keys of conf/network. widths, blocks, channels of a head: of diffusers and MONAI. The rest: the third's."""

    ours: dict[str, Any]
    widths: tuple[int, ...]
    blocks: int
    head: int
    dim: int
    multiples: tuple[int, ...]

    def attends(self, size: int) -> list[bool]:
        """The levels of diffusers and MONAI that attend, as ours do: the last, where it is of 8 x 8 places or fewer."""
        last = size / 2 ** (len(self.widths) - 1) <= self.ours["attention_size"]
        return [False] * (len(self.widths) - 1) + [last]


MATCHES = {
    "tiny": Match({"channels": 32, "multipliers": [1, 2], "attention_size": 4}, (32, 40), 2, 20, 20, (1, 3)),
    "small": Match({"channels": 16, "multipliers": [1, 3, 6], "attention_size": 8}, (16, 32, 96), 1, 16, 16, (1, 2, 5)),
    "wide": Match({"channels": 16, "multipliers": [1, 9, 3], "attention_size": 8}, (32, 64, 64), 2, 16, 32, (1, 2, 2)),
}
"""tiny and small are those of conf/network; wide is for timing, of widths that every library computes well:
ours computes most at half the images' resolution, where memory is touched least for a multiply-add."""
GROUPS = 8
"""Of diffusers' and MONAI's group norms; ours and the third have their own."""


def our_words(match: str) -> dict[str, Any]:
    return {**MATCHES[match].ours, "blocks": 1, "dropout": 0.0}


def ours(match: str, size: int, channels: int) -> Any:
    from diffusion.networks import UNet

    return UNet(channels, channels, (size, size), **our_words(match))


def diffusers(match: str, size: int, channels: int) -> Any:
    from diffusers import UNet2DModel

    shape = MATCHES[match]
    attends = shape.attends(size)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=shape.blocks,
        block_out_channels=shape.widths,
        norm_num_groups=GROUPS,
        attention_head_dim=shape.head,
        add_attention=attends[-1],
        down_block_types=["AttnDownBlock2D" if each else "DownBlock2D" for each in attends],
        up_block_types=["AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attends)],
    )


def monai(match: str, size: int, channels: int) -> Any:
    from monai.networks.nets import DiffusionModelUNet

    shape = MATCHES[match]
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=channels,
        channels=shape.widths,
        attention_levels=shape.attends(size),
        num_res_blocks=shape.blocks,
        num_head_channels=shape.head,
        norm_num_groups=GROUPS,
    )


def denoising_diffusion_pytorch(match: str, size: int, channels: int) -> Any:
    from denoising_diffusion_pytorch import Unet

    return Unet(dim=MATCHES[match].dim, dim_mults=MATCHES[match].multiples, channels=channels, flash_attn=True)


NETWORKS = {network.__name__: network for network in (ours, diffusers, monai, denoising_diffusion_pytorch)}


def counted(library: str, match: str, size: int, channels: int) -> dict[str, float]:
    """Millions of parameters, and of multiply-adds for one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = NETWORKS[library](match, size, channels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, channels, size, size), torch.zeros(1))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters_m": parameters / 1e6, "multiply_adds_m": counter.get_total_flops() / 2e6}


def compare(rows: dict[str, dict[str, float]], times: Mapping[str, float]) -> None:
    """over_ours, added to the rows of all tools: their time of one multiply-add, over ours."""
    if "ours" in rows:
        ours = times["ours"] / rows["ours"]["multiply_adds_m"]
        for name, row in rows.items():
            row["over_ours"] = times[name] / row["multiply_adds_m"] / ours


def faults(rows: Mapping[int, Mapping[str, Mapping[str, float]]], margin: float) -> list[str]:
    """Of rows by size and tool: what takes less than `margin` times our time, one line each."""
    return [
        f"{name} takes {row['over_ours']:.2f} times our time at {size}"
        for size, found in rows.items()
        for name, row in found.items()
        if name != "ours" and row.get("over_ours", margin) < margin
    ]
