"""model=pixel_ddpm and model=latent_ddpm: one diffusion model, whose codec says in which space it lives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.callbacks import EMA, Budget, PostHocEMA, Previews
from diffusion.codecs import Codec
from diffusion.controls import Control
from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.guidance import Guidance
from diffusion.models.base import PARTS, Model, Weights, factory, loaded
from diffusion.models.deviation import AT_ONCE, std_of
from diffusion.modules import DiffusionModule
from diffusion.networks import Concatenated, Incomplete
from diffusion.networks.lora import add_updates, merge_updates
from diffusion.objectives import Objective
from diffusion.random import NOISES, seed_of

log = logging.getLogger(__name__)


class Diffusion(Model):
    """A denoiser of the codec's latents; where the config has a control, the network is told that too.

    Args:
        target: the batch's key that is diffused; a subclass is for another than image.
        condition: the batch's keys that the network is told; a key that the data lack is left out.
        label_dropout: share of samples trained without their condition, for guidance.
        known: "mask", where only those pixels of the training images are known whose mask is above 0; or None: all.
        noise: gaussian, or simplex, for finding anomalies.
    """

    parts = PARTS - {"perceptual", "discriminator"}
    diffuses = "image"

    def __init__(
        self,
        config: DictConfig,
        target: str = "image",
        condition: Sequence[str] = ("label",),
        label_dropout: float = 0.1,
        known: str | None = None,
        noise: str = "gaussian",
    ):
        super().__init__(config)
        if noise not in NOISES:
            raise UserError(f"model.noise={noise}: give {' or '.join(NOISES)}")
        if target != self.diffuses:
            raise UserError(f"model.target={target}: image or mask can be diffused, a mask by model=mask_ddpm")
        if any(key != "label" for key in condition):
            raise UserError(f"model.condition={list(condition)}: the networks can be told label only, or []")
        if known not in (None, "mask"):
            raise UserError(f"model.known={known}: give mask, or null where all pixels are known")
        self.target, self.condition, self.label_dropout = target, tuple(condition), label_dropout
        self.known, self.draw = known, NOISES[noise]

    @cached_property
    def codec(self) -> Codec:
        """The codec. Raises UserError if it is not the one with which the run began."""
        codec = instantiate(self.config.codec)
        began = self.config.data.codec_fingerprint if self.config.get("data") else codec.fingerprint
        if codec.fingerprint != began:
            raise UserError(another_codec(began, codec.fingerprint))
        if codec.target != self.target:
            fitting = {"image": "model=mask_ddpm, or codec=identity", "mask": "codec=one_hot or analog_bits"}
            raise UserError(
                f"the codec is for a {codec.target}, and the model for a {self.target}: use {fitting[self.target]}"
            )
        return codec

    def control(self, spec: DataSpec) -> Control | None:
        """What the network is told of each place, or None. Raises UserError where the data cannot give it."""
        node = self.config.get("control")
        control = factory(node)(spec) if node else None
        if control and control.source == "image" and self.codec.fingerprint is not None:
            raise UserError(
                "this control is made of pixels, and a latent model trains on latents that are encoded once: use "
                "control=mask, or model=pixel_ddpm"
            )
        return control

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        """Of what is diffused, before the codec."""
        return spec.shape

    def check_posterior_mean(self) -> None:
        """Raises UserError for a model that does not answer with the mean of all images that fit, in Gaussian noise."""
        if self.draw is not NOISES["gaussian"]:
            raise UserError(
                f"a run of {self.config.experiment} has learnt another noise (model.noise), and this is of Gaussian "
                "noise: give a run of model.noise=gaussian"
            )

    @property
    def level(self) -> float | None:
        """The one noise level, sigma / alpha, that it learns to take off; None where it learns many."""
        return self.objective.times.level

    @property
    def makes_images(self) -> bool:
        return self.level is None

    @property
    def next_task(self) -> str:
        return "sample" if self.level is None else "denoise"

    @cached_property
    def objective(self) -> Objective:
        return instantiate(self.config.objective)

    def told(self, spec: DataSpec) -> int | None:
        """The classes that the network is told, or None: where the data have none, or condition leaves them out."""
        return spec.classes if "label" in self.condition else None

    def classes(self, spec: DataSpec) -> int | None:
        """Those that it is told; or those that the guidance leads towards by itself."""
        if not self.makes_images:
            raise UserError(self._makes_no_images())
        return spec.classes if self._guidance and self._guidance.asks else self.told(spec)

    @property
    def _guidance(self) -> type[Guidance] | None:
        node = self.config.get("guidance")
        return get_class(node._target_) if node else None

    def data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        """Images in pixel space; elsewhere what the codec makes of them, made once and kept."""
        if self.codec.fingerprint is None:
            return datamodule
        if self.config.augmentation:
            raise UserError(
                "augmentation changes pixels, and the latents are encoded once, before it could: use augmentation=none"
            )
        self.codec.for_images(self.shape(datamodule.spec))
        if self.codec.trained_on not in (None, datamodule.fingerprint()):
            log.warning("the autoencoder learnt from other data than %s: look at what it loses", datamodule.source)
        latents = datamodule.encoded(self.codec.to(self.device), self.cache, self.device)
        # Now, because later the Trainer has the codec where it wants it.
        latents.setup()
        return latents

    def check_known(self, spec: DataSpec) -> None:
        """Raises UserError for what would mix unknown pixels with known ones, and for data without masks."""
        if spec.mask_classes is None:
            raise UserError("model.known=mask needs data with masks: dataset=masks, or a table with a column of masks")
        reasons = {
            "augmentation=none: interpolation mixes unknown pixels with known ones": self.config.augmentation,
            "codec=identity: an encoder mixes unknown pixels with known ones": self.codec.fingerprint is not None,
            "an objective without a bound, which asks for all pixels": self.objective.bound is not None,
        }
        for needed, lacking in reasons.items():
            if lacking:
                raise UserError(f"model.known=mask needs {needed}")

    def std(self, datamodule: pl.LightningDataModule) -> float:
        if self.known:
            self.check_known(datamodule.spec)
            return std_of(known_pixels(datamodule.split("train")))
        return super().std(datamodule)

    def facts(self, datamodule: pl.LightningDataModule) -> dict[str, Any]:
        """The codec's fingerprint, a pretrained network's architecture, and no guidance by labels that are not told."""
        found = {"data.codec_fingerprint": self.codec.fingerprint}
        network = self.config.network
        if network.get("pretrained"):
            architecture = get_class(network._target_).architecture_of(network.pretrained, network.subfolder)
            found["network.architecture"] = architecture
        unlabelled = self.told(datamodule.spec) is None
        return found | ({"guidance": None} if unlabelled and self.lacks(datamodule.spec) else {})

    def lacks(self, spec: DataSpec) -> str | None:
        return self._guidance.lacks(self.told(spec), self.label_dropout) if self._guidance else None

    def denoiser(self, spec: DataSpec, pretrained: bool = True) -> NetworkDenoiser:
        """The denoiser with its initial weights; without `pretrained` they are drawn, whatever the run began from."""
        config = self.config
        given = {} if pretrained or not config.network.get("pretrained") else {"pretrained": None}
        shape = self.codec.for_images(self.shape(spec)).latent_shape(self.shape(spec))
        control = self.control(spec)
        augmentation = self.augmentation(spec)
        torch.manual_seed(seed_of(config.seed, "weights"))
        covariance = self.objective.bound is not None
        make = partial(factory(config.network), **given)
        if control and not getattr(get_class(config.network._target_), "takes_control", False):
            make = partial(Concatenated, make)
        if self.known:
            self.check_known(spec)
            make = partial(Incomplete, make)
        network = make(
            in_channels=shape[0],
            out_channels=shape[0] * (1 + covariance),
            size=list(shape[1:]),
            classes=self.told(spec),
            augmentation=augmentation.values if augmentation else 0,
            **({"control": control.shape} if control else {}),
        )
        if (rank := (config.get("finetune") or {}).get("lora")) is not None:
            add_updates(network, rank)
        return NetworkDenoiser(
            scheduler=factory(config.scheduler)(),
            parameterization=factory(config.parameterization)(sd=config.data.std),
            network=network,
            covariance=covariance,
        )

    def module(self, datamodule: pl.LightningDataModule) -> DiffusionModule:
        return DiffusionModule(
            denoiser=self.denoiser(datamodule.spec),
            codec=self.codec,
            objective=self.objective,
            optimizer=factory(self.config.optimizer),
            augmentation=self.augmentation(datamodule.spec),
            control=self.control(datamodule.spec),
            target=self.target,
            condition=self.condition,
            label_dropout=self.label_dropout,
            known=self.known,
            draw=self.draw,
            seed=self.config.seed,
        )

    def callbacks(
        self, module: DiffusionModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        spec, control = datamodule.spec, module.control
        if self.level is not None:  # from noise it draws nothing that could be looked at
            return self._post_hoc_ema(directory)
        previews: Previews = factory(self.config.callbacks.previews)(
            generative=self.sampled(module.denoiser, spec),
            shape=self.shape(spec),
            classes=self.classes(spec) if self.makes_images else None,
            folder=directory / "samples",
            ema=ema,
            **({"asked": partial(self.asked, datamodule, control), "shown": control.shown} if control else {}),
        )
        evaluation = self._evaluation(module, datamodule, directory, ema, budget)
        return [*self._post_hoc_ema(directory), previews, *evaluation]

    def asked(self, datamodule: pl.LightningDataModule, control: Control, n: int) -> dict[str, Tensor]:
        """Control and classes of n validation images, again from the first where there are fewer."""
        split = datamodule.pixels.split("val")
        batch = split[torch.arange(n) % len(split)]
        told = {key: batch[key] for key in self.condition if key in batch}
        return {key: value.cpu() for key, value in (told | {"control": control(batch)}).items()}

    def _post_hoc_ema(self, directory: Path) -> list[PostHocEMA]:
        config = self.config.callbacks.post_hoc_ema
        return [factory(config)(folder=directory / "checkpoints" / "ema")] if config.snapshots else []

    def _evaluation(
        self, module: DiffusionModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        config = self.config.callbacks.evaluation
        if config.every_n_steps is None:
            return []
        if not self.makes_images or module.control:
            raise UserError(
                "callbacks.evaluation judges images that are asked for nothing but a class: leave every_n_steps out"
            )
        return [
            factory(config)(
                generative=self.sampled(module.denoiser, datamodule.spec),
                datamodule=datamodule.pixels,
                extractor=factory(self.config.extractor)(
                    datamodule=datamodule.pixels, cache=self.cache, device=self.device
                ),
                classes=self.classes(datamodule.spec),
                folder=directory / "checkpoints",
                ema=ema,
                budget=budget,
            )
        ]

    def generative(self, spec: DataSpec, weights: Weights) -> GenerativeModel:
        if self.level is not None:
            raise UserError(self._makes_no_images())
        return self.sampled(self.trained_denoiser(spec, weights()), spec, weights)

    def denoising(self, spec: DataSpec, weights: Weights) -> GenerativeModel:
        self.check_posterior_mean()
        return self.sampled(self.trained_denoiser(spec, weights()), spec, weights)

    def trained_denoiser(self, spec: DataSpec, weights: Mapping[str, Tensor]) -> NetworkDenoiser:
        """The denoiser with these weights, in evaluation mode."""
        denoiser = self.denoiser(spec, pretrained=False)
        return merge_updates(loaded(denoiser, weights)).eval()

    def sampled(self, denoiser: NetworkDenoiser, spec: DataSpec, weights: Weights | None = None) -> GenerativeModel:
        """The denoiser, under the guidance that the config asks for, with its sampler and grid.

        weights: the run's, of which guides may be made. While a run trains, it has none to give: guidance by a guide
        that needs them is then left out. Raises UserError for what the guidance lacks.
        """
        config, guided = self.config, denoiser
        if lacking := self.lacks(spec):
            raise UserError(lacking)
        node = config.get("guidance") or {}
        guides = {name: value for name, value in node.items() if isinstance(value, DictConfig)}
        made = {name: factory(value)(model=self, spec=spec, weights=weights) for name, value in guides.items()}
        if node and None not in made.values():
            plain = OmegaConf.create({name: value for name, value in node.items() if name not in guides})
            guided = factory(plain)(denoiser, **made)
        sampler, grid = instantiate(config.sampler), factory(config.grid)()
        generative = GenerativeModel(guided, self.codec, sampler, grid, self.draw)
        generative.rehearse()
        return generative

    def trained_codec(self, spec: DataSpec, checkpoint: Callable[[], Mapping[str, Any]]) -> Codec:
        if self.codec.fingerprint is None:
            raise UserError("this run lives in pixel space: nothing is compressed, and nothing to reconstruct")
        return self.codec


def known_pixels(split: Any) -> Iterator[Tensor]:
    """The pixels of a split whose mask is above 0, all channels together, part by part."""
    for places in torch.arange(len(split)).split(AT_ONCE):
        batch = split[places]
        yield batch["image"][(batch["mask"] > 0).expand_as(batch["image"])]


def another_codec(began: str | None, now: str | None) -> str:
    """What to say when a run is to go on with another codec; both are fingerprints."""
    return (
        f"the codec is not the one with which this run began (fingerprint {began}, now {now}): its autoencoder has "
        "changed since, as by training it further, or is another; give the old one, or begin another run_id"
    )
