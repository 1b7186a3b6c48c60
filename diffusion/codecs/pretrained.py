"""Latent space of others: a pretrained autoencoder of the diffusers library, which is an optional extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion.codecs.autoencoder import fingerprint_of
from diffusion.codecs.base import Codec, exact
from diffusion.errors import UserError
from diffusion.networks.frozen import Frozen
from diffusion.networks.hub import load
from diffusion.random import Noise


class Diffusers(Codec):
    """latents = (z - shift) * scale, z ~ N(mean, std^2) of an AutoencoderKL; shift and scale are in its config.

    Moments are mean and std behind each other, (B, 2 L, *s).

    Args:
        path: a directory, or an id on the Hugging Face hub.
        subfolder: where in it the autoencoder lies; found by itself in a directory that holds a whole pipeline.

    An autoencoder of three channels that is set to grey images (`for_images`) is shown them three times over, and what
    it decodes is averaged over the channels.

    Raises UserError where diffusers is not installed, or path cannot be loaded or holds something else.
    """

    def __init__(self, path: str | None, subfolder: str | None = None):
        super().__init__()
        if not path:
            raise UserError(
                "codec=diffusers needs an autoencoder: add codec.path=FOLDER, or an id on the Hugging Face hub"
            )
        network = load("AutoencoderKL", "the autoencoder", path, subfolder, "vae")
        self.path, self.channels = path, network.config.in_channels
        self.scale, self.shift = network.config.scaling_factor or 1.0, network.config.shift_factor or 0.0
        latents = {"scale": torch.tensor(self.scale), "shift": torch.tensor(self.shift)}
        self.fingerprint = fingerprint_of({**network.state_dict(), **latents})
        self.frozen = Frozen(network)

    def moments(self, images: Tensor) -> Tensor:
        with exact(images):
            lifted = images.float().expand(-1, self._config.in_channels, *images.shape[2:])
            z = self.frozen.network.encode(lifted).latent_dist
            return torch.cat([z.mean, z.std], dim=1)

    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        with exact(moments):
            z, std = moments.chunk(2, dim=1)
            if rng is not None:
                z = z + std * rng(z.shape[1:])
            return (z - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        with exact(latents):
            images = self.frozen.network.decode(latents.float() / self.scale + self.shift).sample
            return images.mean(dim=1, keepdim=True) if self.channels < images.shape[1] else images

    def for_images(self, shape: Sequence[int]) -> Diffusers:
        super().for_images(shape)
        self.channels = shape[0]
        return self

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        channels, *size = shape
        if len(size) != 2:
            raise UserError(
                f"images of shape {tuple(shape)} are not 2-D, and the autoencoder {self.path} takes nothing else: "
                "use codec=identity, or train an autoencoder on these data"
            )
        if channels not in (self._config.in_channels, 1):
            raise UserError(
                f"images of {channels} channels do not fit the autoencoder {self.path}, which takes "
                f"{self._config.in_channels}: choose another autoencoder"
            )
        factor = 2 ** (len(self._config.block_out_channels) - 1)
        if any(side % factor for side in size):
            raise UserError(
                f"images of {size[0]} x {size[1]} cannot be encoded by {self.path}, which reduces them {factor} times: "
                f"choose sides that are multiples of {factor}"
            )
        return self._config.latent_channels, size[0] // factor, size[1] // factor

    @property
    def _config(self) -> Any:
        return self.frozen.network.config
