"""Latent space: an autoencoder of this project, its latents brought to mean 0 and standard deviation 1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from diffusion.codecs.base import Codec, broadcast, exact
from diffusion.errors import UserError
from diffusion.networks.frozen import Frozen
from diffusion.random import Noise


class Autoencoder(Codec):
    """latents = (z - mean) / std for each channel, z what the network draws.

    Args:
        network: has moments(images), draw(moments, rng), decode(z) and latent_shape(shape); frozen from here on.
        mean, std: (L,), of z over the training images; see `latent_statistics`.
        fingerprint: of the network with mean and std; see `fingerprint_of`.
        shape: (C, *S) of the images that it learnt from, the only ones that it takes; None for any that fit.
        trained_on: the fingerprint of the data that it learnt from.

    Raises UserError for a mean or std that is not finite, or a std that float32 cannot tell from 0 beside its mean.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        std: Tensor,
        fingerprint: str,
        shape: Sequence[int] | None = None,
        trained_on: str | None = None,
    ):
        super().__init__()
        _check_statistics(mean, std)
        self.frozen, self.fingerprint = Frozen(network), fingerprint
        self.shape, self.trained_on = shape and tuple(shape), trained_on
        # They come from where the network comes from: a checkpoint need not keep them.
        self.register_buffer("mean", mean.detach().float().clone(), persistent=False)
        self.register_buffer("std", std.detach().float().clone(), persistent=False)

    def moments(self, images: Tensor) -> Tensor:
        with exact(images):
            return self.frozen.network.moments(images.float()).float()

    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        with exact(moments):
            z = self.frozen.network.draw(moments, rng)
            return (z - broadcast(self.mean, z)) / broadcast(self.std, z)

    def decode(self, latents: Tensor) -> Tensor:
        with exact(latents):
            z = latents.float() * broadcast(self.std, latents) + broadcast(self.mean, latents)
            return self.frozen.network.decode(z).float()

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        latents = tuple(self.frozen.network.latent_shape(shape))
        if self.shape not in (None, tuple(shape)):
            raise UserError(
                f"images of {'x'.join(map(str, shape[1:]))} do not match the autoencoder, which learnt from "
                f"{'x'.join(map(str, self.shape[1:]))}: train one on such images"
            )
        return latents


@torch.no_grad()
def latent_statistics(network: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents z of all images over each channel, float64 (L,) on the CPU.

    z = m + s eps over draws of eps too, in closed form: E[z] = E[m], Var[z] = Var[m] + E[s^2]. m is what the network
    draws without noise, s what it adds for eps = 1: a vector quantiser, which has no noise, adds nothing.

    network: see `Autoencoder`; in evaluation mode.
    batches: images (B, C, *S) on the network's device, at least one.
    """
    count, mean, square = 0, torch.zeros(()), torch.zeros(())
    for images in batches:
        with exact(images):
            moments = network.moments(images.float()).float()
            drawn = network.draw(moments, None)
            spread = network.draw(moments, lambda shape, like=drawn: torch.ones_like(like)) - drawn
        values, noise = (x.cpu().double().transpose(0, 1).flatten(1) for x in (drawn, spread))
        n, here = values.shape[1], values.mean(1)
        # Merged by their means (Chan, Golub and LeVeque 1979): a sum of squares would lose a std far below its mean.
        apart = here - mean
        square = square + ((values - here[:, None]) ** 2 + noise**2).sum(1) + apart**2 * (count * n / (count + n))
        mean = mean + apart * (n / (count + n))
        count += n
    return mean, (square / count).sqrt()


def fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change with any name, dtype, shape or value, and not with the order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        digest.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(value.flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _check_statistics(mean: Tensor, std: Tensor) -> None:
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise UserError(
            "the autoencoder has diverged: its latents are not finite, so that nothing can be trained on them: "
            "train it again with a lower learning rate"
        )
    # Latents that all agree leave a std of rounding errors, far below what float32 resolves.
    flat = ~(std > torch.finfo(torch.float32).eps * mean.abs())
    if flat.any():
        raise UserError(
            f"the autoencoder has collapsed: {int(flat.sum())} of its {len(std)} latent channels have the same value "
            "for all images: train it longer, or with fewer channels"
        )
