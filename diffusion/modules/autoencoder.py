"""The LightningModule of every autoencoder: Gaussian or vector-quantised, with or without a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from diffusion.modules.places import log_validation, places
from diffusion.networks import Frozen
from diffusion.objectives import ReconstructionLoss, adaptive_weight, hinge_discriminator, hinge_generator
from diffusion.random import normal_block


class AutoencoderModule(pl.LightningModule):
    """Trains the autoencoder and, from `loss.adversarial_start` on, the discriminator, in one optimizer step.

    The autoencoder's loss passes through the discriminator's weights as constants, and the discriminator's through
    the reconstructions as constants; so the gradient of their sum is to each network the gradient of its own loss
    (Esser et al. 2021, eq. 5 to 7), and one optimizer serves both: accumulation, clipping and resume work as they do
    for every other model, and a step is one step.

    The posterior's noise depends on (seed, optimizer step, place in the global batch); validation takes its mean.

    Args:
        network, loss: see their packages.
        optimizer: parameters -> optimizer.
        perceptual: (images, reconstructions) -> distances (B,), or None; it is not trained.
        discriminator: images -> logits, or None.
        seed: of the noise.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: ReconstructionLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        perceptual: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.network, self.loss, self.optimizer, self.seed = network, loss, optimizer, seed
        self.perceptual = Frozen(perceptual) if perceptual else None
        self.discriminator = discriminator

    @property
    def trained(self) -> nn.Module:
        """What is averaged."""
        return self.network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        networks = [self.network, *([self.discriminator] if self.discriminator else [])]
        return self.optimizer(list(chain.from_iterable(network.parameters() for network in networks)))

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, **_: object
    ) -> None:
        """Clip each network's norm by itself; under mixed precision Lightning refuses to beside a fused optimizer."""
        if gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)
            if self.discriminator:
                torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), gradient_clip_val)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor | dict[str, Tensor]]:
        """The sum of the losses to descend, and under "terms" what to log."""
        images = batch["image"]
        first, _ = places(self, batch_idx, len(images))
        key = (self.seed, "train", self.global_step)
        found = self.network(
            images, lambda shape: normal_block((*key, "posterior"), first, len(images), shape, images.device)
        )
        terms = self.loss.terms(images, found, self.perceptual)
        loss = total = self.loss.total(terms)
        if self.discriminator and self.global_step >= self.loss.adversarial_start:
            constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
            fooled = hinge_generator(torch.func.functional_call(self.discriminator, constant, (found.images,)))
            weight = adaptive_weight(loss, fooled, self.network.last_layer)
            told = hinge_discriminator(self.discriminator(images), self.discriminator(found.images.detach()))
            total = loss + self.loss.adversarial * weight * fooled + told
            terms |= {"generator": fooled, "discriminator": told, "adaptive_weight": weight}
        logged = {"loss": loss, **terms, **found.statistics}
        return {"loss": total, "terms": {name: value.detach() for name, value in logged.items()}}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        images = batch["image"]
        found = self.network(images, None)
        terms = self.loss.terms(images, found, self.perceptual)
        squared = (found.images.float().clamp(-1, 1) - images).square().flatten(1).mean(1) / 4
        psnr = -10 * squared.clamp(min=1e-10).log10().mean()
        logged = {"loss": self.loss.total(terms), "psnr": psnr, **terms, **found.statistics}
        for name, value in logged.items():
            log_validation(self, name, value, batch)
