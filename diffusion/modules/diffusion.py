"""The LightningModule of every diffusion model, in pixels and in latents: only the codec differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from diffusion.augmentations import Augmentation
from diffusion.codecs import Codec
from diffusion.controls import Control
from diffusion.denoiser import NetworkDenoiser
from diffusion.devices import to_device
from diffusion.errors import UserError
from diffusion.modules.noisy import NoisyModule, metrics_by_noise
from diffusion.objectives import Objective
from diffusion.random import Draw, gaussian, normal_block, stratified_uniform, uniform


class DiffusionModule(NoisyModule):
    """Trains a denoiser on what the codec draws from batch[target], its moments of the images.

    Times, noise and dropped labels of a training step depend on (seed, optimizer step, place in the global batch);
    augmentation on the seed and the sample's place in the endless stream of training samples, which is its epoch and
    its place in it; those of validation on the place in the validation set alone, so that the curves of all runs
    compare.

    Args:
        denoiser, codec, objective: see their packages.
        optimizer: parameters -> optimizer.
        augmentation: changes the training images and may say how, or None; see its package.
        control: what the network is told of each place, made of the batch, or None.
        target: the batch's key that is diffused.
        condition: the batch's keys that the network is told; a key that the data lack is left out.
        label_dropout: probability with which a sample is trained without its condition.
        known: the batch's key that is above 0 where a pixel is known, or None where all are; see `Objective.loss`.
        draw: the noise; see `diffusion.random`.
        seed: of all the randomness above.

    Raises UserError for a label_dropout outside [0, 1], or a schedule that learns under an objective that it
    would bend.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        codec: Codec,
        objective: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        augmentation: Augmentation | None = None,
        control: Control | None = None,
        target: str = "image",
        condition: Sequence[str] = ("label",),
        label_dropout: float = 0.1,
        known: str | None = None,
        draw: Draw = gaussian,
        seed: int = 0,
    ):
        super().__init__(optimizer, augmentation, seed)
        if not 0 <= label_dropout <= 1:
            raise UserError(f"model.label_dropout={label_dropout}: give a share from 0 to 1")
        objective.check(denoiser, pixels=codec.fingerprint is None)
        self.denoiser, self.codec, self.objective = denoiser, codec, objective
        self.control = control
        self.loss_by_noise = metrics_by_noise()
        self.target, self.condition, self.label_dropout = target, tuple(condition), label_dropout
        self.known, self.draw = known, draw

    @property
    def network(self) -> nn.Module:
        return self.denoiser.network

    @property
    def trained(self) -> nn.Module:
        """All that learns, and is averaged: the denoiser, for a scheduler may learn too."""
        return self.denoiser

    def configure_model(self) -> None:
        """Deal the network out among the processes, if the strategy is to."""
        if self.device_mesh is not None:
            self.network.to(memory_format=torch.contiguous_format)  # FSDP deals out no other
            # Gathered for each pass, and dealt out again at its end: whoever reads or averages weights sees its share.
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        key, first, total = self.begin_step(batch_idx, len(batch[self.target]))
        told = {}
        if self.augmentation:
            batch, values = self.augmented(batch, first, total)
            told = {"augmentation": values} if self.augmentation.values else {}
        images, cond = batch[self.target], self._condition(batch) | told
        if self.label_dropout > 0:
            dropped = uniform((*key, "drop"), first, len(images)) < self.label_dropout
            cond["drop"] = to_device(dropped, images.device)
        losses, t = self._losses(images, cond, key, first, total=total)
        return losses.mean() + self.denoiser.scheduler.own_loss(t, losses.detach())

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        images, cond = batch[self.target], self._condition(batch)
        losses, t = self._losses(images, cond, self.validation_key(batch_idx), first=0, total=len(images))
        self.log_validation("loss", losses, batch)
        self.log_by_noise("loss_by_noise", self.loss_by_noise, losses, self.denoiser.scheduler.log_snr(t), batch)

    def _condition(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        told = {name: batch[name] for name in self.condition if name in batch}
        told |= {"control": self.control(batch)} if self.control else {}
        return told | ({"known": batch[self.known] > 0} if self.known else {})

    def _losses(
        self, images: Tensor, cond: Mapping[str, Tensor], key: tuple, first: int, total: int
    ) -> tuple[Tensor, Tensor]:
        """The losses (B,) of moments that are the places first ... of a batch of `total`, and their times (B,)."""
        x0 = self.codec.draw(
            images, lambda shape: normal_block((*key, "posterior"), first, len(images), shape, images.device)
        )
        t = self.objective.time(stratified_uniform((*key, "time"), first, len(x0), total), self.denoiser.scheduler)
        noise = normal_block((*key, "noise"), first, len(x0), x0.shape[1:], x0.device, self.draw)
        return self.objective.loss(self.denoiser, x0, noise, t, cond), t
