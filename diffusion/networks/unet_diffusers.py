"""The U-Net of the diffusers library as F(x, c_noise, cond): a run of it can be exported, and begin from theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.denoiser import Cond
from diffusion.errors import UserError
from diffusion.networks import hub
from diffusion.networks.layers import groups_of, pad_to_multiple, zero
from diffusion.parameterizations.base import LOG_SNR_LIMIT
from diffusion.schedulers import NoiseScheduler, Table

NAME = "network=unet_diffusers"
SNAP = 1024


class UNetDiffusers(nn.Module):
    """A `UNet2DModel` whose timestep is the row of a discrete table of the schedule that has the log-SNR of c_noise.

    Row i of `rows` is at t = (i + 1) / rows. Between rows the timestep is a fraction, linear in the log-SNR; before the
    first, sigma / alpha is proportional to timestep + 1. A class more than the data's means "no label".

    Args:
        in_channels, out_channels, size, classes: as of `UNet`, two dimensions only.
        augmentation: must be 0: a UNet2DModel cannot be told.
        channels, multipliers, blocks, attention_size, head_channels, dropout: as of `UNet`.
        rows: timesteps of the table.
        table: the schedule; that of Ho et al. 2020 where it is None.
        pretrained: a folder or an id on the Hugging Face hub with the weights to begin from.
        subfolder: where in it the U-Net lies; found by itself in a folder that holds a whole pipeline.
        architecture: all keys of a UNet2DModel, in place of channels ... dropout; those of `pretrained` by default.

    Its own output layer starts at zero, so an untrained network answers 0. Raises UserError where diffusers is not
    installed, or the network does not fit the data.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Sequence[int],
        classes: int | None = None,
        augmentation: int = 0,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention_size: int = 8,
        head_channels: int = 32,
        dropout: float = 0.0,
        rows: int = 1000,
        table: NoiseScheduler | None = None,
        pretrained: str | None = None,
        subfolder: str | None = None,
        architecture: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        shape = "x".join(map(str, size))
        if len(size) != 2:
            raise UserError(f"{NAME} is 2-D, and the images are {shape}: use network=tiny, small or base")
        if augmentation:
            raise UserError(
                f"{NAME} cannot be told how an image was augmented: use augmentation.told=false, or another one"
            )
        if rows < 2:
            raise UserError(f"network.rows={rows}: give at least 2")
        wanted = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "num_class_embeds": None if classes is None else classes + 1,
            "class_embed_type": None,
            "time_embedding_type": "positional",
        }
        self.classes, self.rows = classes, rows
        if architecture is None and pretrained is not None:
            architecture = self.architecture_of(pretrained, subfolder)
        if architecture is None:
            architecture = wanted | _architecture(
                size, channels, multipliers, blocks, attention_size, head_channels, dropout
            )
        _check(architecture, wanted, pretrained)
        self.factor = 2 ** (len(architecture["block_out_channels"]) - 1)
        if min(size) < self.factor:
            raise UserError(
                f"images of {shape} cannot be halved {self.factor.bit_length() - 1} times by this U-Net: "
                "use fewer network.multipliers, or larger images"
            )
        if pretrained is None:
            self.unet = _built(architecture)
            zero(self.unet.conv_out)
        else:
            self.unet = hub.load("UNet2DModel", "the U-Net", pretrained, subfolder, "unet")
        with torch.no_grad(), torch.device("cpu"):
            t = torch.arange(1, rows + 1, dtype=torch.float64) / rows
            levels = (table or Table()).log_snr(t).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        self.register_buffer("levels", levels.float().to(self.unet.conv_in.weight.device), persistent=False)

    @staticmethod
    def architecture_of(pretrained: str, subfolder: str | None = None) -> dict[str, Any]:
        """The keys with which the UNet2DModel there is built. Raises UserError where there is none."""
        return hub.load_config("UNet2DModel", "the U-Net", pretrained, subfolder, "unet")

    def timesteps(self, c_noise: Tensor) -> Tensor:
        """The place in the table, (B,) float32, of c_noise = -log_snr / 8, (B,)."""
        level = -8 * c_noise.float()
        low = ((self.levels >= level[:, None]).sum(1) - 1).clamp(0, self.rows - 2)
        above, below = self.levels[low], self.levels[low + 1]
        place = low + (above - level) / (above - below).clamp(min=1e-6)
        place = torch.where(level > self.levels[0], torch.exp((self.levels[0] - level) / 2) - 1, place)
        # c_noise is float32, in which a row is off by up to 1e-4: a row itself is met exactly.
        return (place * SNAP).round() / SNAP

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, in_channels, H, W), c_noise (B,) -> (B, out_channels, H, W).

        cond may hold "label", int64 (B,), and "drop", bool (B,): those samples are answered without their label.
        """
        x, crop = pad_to_multiple(x, self.factor)
        return self.unet(x, self.timesteps(c_noise), self._labels(x.shape[0], cond or {})).sample[crop]

    def _labels(self, count: int, cond: Cond) -> Tensor | None:
        if self.classes is None:
            return None
        none = torch.full((count,), self.classes, dtype=torch.long, device=self.levels.device)
        if "label" not in cond:
            return none
        if cond["label"].ndim != 1:
            raise UserError(f"{NAME} takes one class of an image, not several: use model.condition=[]")
        return torch.where(cond["drop"], none, cond["label"]) if "drop" in cond else cond["label"]


def _architecture(
    size: Sequence[int],
    channels: int,
    multipliers: Sequence[int],
    blocks: int,
    attention_size: int,
    head_channels: int,
    dropout: float,
) -> dict[str, Any]:
    """What the keys of `UNet` mean in a UNet2DModel."""
    for name, value in {"channels": channels, "blocks": blocks, "head_channels": head_channels}.items():
        if value < 1:
            raise UserError(f"network.{name}={value}: give at least 1")
    if not multipliers or min(multipliers) < 1:
        raise UserError(f"network.multipliers={list(multipliers)}: give one number above 0 for each level")
    factor = 2 ** (len(multipliers) - 1)
    longest = math.ceil(max(size) / factor) * factor
    widths = [channels * multiplier for multiplier in multipliers]
    attends = [longest // 2**level <= attention_size for level in range(len(widths))]
    for width, attending in zip(widths, attends, strict=True):
        if attending and width % head_channels:
            raise UserError(
                f"network.head_channels={head_channels} does not divide {width}, the channels of a level that attends"
            )
    return {
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": ["AttnDownBlock2D" if attending else "DownBlock2D" for attending in attends],
        "up_block_types": ["AttnUpBlock2D" if attending else "UpBlock2D" for attending in reversed(attends)],
        "add_attention": attends[-1],
        "attention_head_dim": head_channels,
        "dropout": dropout,
        "norm_num_groups": groups_of(channels),
    }


def _check(architecture: Mapping[str, Any], wanted: Mapping[str, Any], pretrained: str | None) -> None:
    """Raises UserError unless the keys that the data decide are as they must be."""
    default = {"in_channels": 3, "out_channels": 3, "time_embedding_type": "positional"}
    found = {key: architecture.get(key, default.get(key)) for key in wanted}
    different = [f"{key} is {found[key]}, and {wanted[key]} is needed" for key in wanted if found[key] != wanted[key]]
    if different:
        where = f"network.pretrained={pretrained}" if pretrained else "network.architecture"
        hint = ""
        if found["num_class_embeds"] != wanted["num_class_embeds"]:
            hint = " (the classes of the data, and one for no label)" if wanted["num_class_embeds"] else ""
            hint += ": model.condition=[] trains without classes" if found["num_class_embeds"] is None else ""
        raise UserError(f"{where} does not fit these data: {'; '.join(different)}{hint}")


def _built(architecture: Mapping[str, Any]) -> nn.Module:
    try:
        return hub.library(NAME).UNet2DModel(**architecture)
    except (TypeError, ValueError) as error:
        raise UserError(f"{NAME} cannot be built: {' '.join(str(error).split())}") from error
