"""What every choice of the group `model` can be asked."""

from __future__ import annotations

import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from datamodules.batch import DataSpec
from diffusion.augmentations import Augmentation
from diffusion.callbacks import EMA, Budget
from diffusion.codecs import Codec
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.tasks.segment import Segmenter

PARTS = frozenset(
    [
        "network",
        "scheduler",
        "parameterization",
        "objective",
        "augmentation",
        "sampler",
        "grid",
        "guidance",
        "codec",
        "control",
        "perceptual",
        "discriminator",
    ]
)
"""The groups that describe a model; each kind of model is made of some of them."""


class Weights(Protocol):
    """The averaged weights of a run, by the names of what its module calls `trained`."""

    def __call__(self, length: float | None = None, at: float = 1.0) -> Mapping[str, Tensor]:
        """Those over a relative EMA length, after the share `at` of the steps; by default those the user chose."""


class Model(ABC):
    """A kind of model, with the whole config of its run."""

    parts: frozenset[str]
    """The groups of PARTS that this kind is made of; the others mean nothing to it."""
    makes_images = False
    """Whether it makes images from noise."""
    compresses = False
    """Whether it is what compresses images to latents."""
    next_task: str
    """The task that a finished run is for."""

    def __init__(self, config: DictConfig):
        self.config = config

    def data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        """The data as this model trains on them."""
        return datamodule

    def augmentation(self, spec: DataSpec) -> Augmentation | None:
        """What changes the training images, or None. Raises UserError if it cannot change images of this shape."""
        if not self.config.augmentation:
            return None
        augmentation = factory(self.config.augmentation)()
        augmentation.check(spec.shape)
        return augmentation

    def std(self, datamodule: pl.LightningDataModule) -> float:
        """Standard deviation of what the model sees of the training data; see `ImageDataModule.std`."""
        return datamodule.std()

    def facts(self, datamodule: pl.LightningDataModule) -> dict[str, Any]:
        """What the config learns of the data and of other runs: keys of the config and their values."""
        return {}

    @abstractmethod
    def module(self, datamodule: pl.LightningDataModule) -> pl.LightningModule:
        """The LightningModule, for data whose spec and standard deviation are in config.data.

        Its initial weights depend on config.seed alone. Raises UserError where the parts do not fit together.
        """

    @abstractmethod
    def callbacks(
        self, module: pl.LightningModule, datamodule: pl.LightningDataModule, directory: Path, ema: EMA, budget: Budget
    ) -> list[pl.Callback]:
        """What this kind of model does while it trains, beyond what every run does."""

    def classes(self, spec: DataSpec) -> int | None:
        """The classes that images can be asked of, or None. Raises UserError if the model makes no images."""
        raise UserError(self._makes_no_images())

    def next_command(self, directory: Path) -> str:
        """What a user does with a finished run."""
        return f"python -m diffusion {self.next_task} run={shlex.quote(str(directory))}"

    def _makes_no_images(self) -> str:
        return (
            f"a run of {self.config.experiment} makes no images from noise: use `python -m diffusion {self.next_task}`"
        )

    def lacks(self, spec: DataSpec) -> str | None:
        """What the model lacks to be guided as the config asks, in one line, or None."""
        return None

    def generative(self, spec: DataSpec, weights: Weights) -> GenerativeModel:
        """The trained model with the config's sampler, grid and guidance.

        Raises UserError if it makes no images, or lacks what the guidance needs.
        """
        raise UserError(self._makes_no_images())

    def denoising(self, spec: DataSpec, weights: Weights) -> GenerativeModel:
        """The trained model to take noise off images with. Raises UserError if it is no denoiser of images."""
        raise UserError(self._makes_no_images())

    def segmenter(self, spec: DataSpec, weights: Weights, device: torch.device | str) -> Segmenter:
        """What finds masks of images, with the averaged weights, on a device. Raises UserError if it finds none."""
        raise UserError(
            f"a run of {self.config.experiment} finds no masks: train one with model=segmenter on data with masks, as "
            "experiment=wbc_segmenter"
        )

    @abstractmethod
    def trained_codec(self, spec: DataSpec, checkpoint: Callable[[], Mapping[str, Any]]) -> Codec:
        """The codec that a run holds, or uses. Raises UserError if it cannot be had."""

    @property
    def cache(self) -> Path:
        """Where what is computed once for many runs is kept."""
        return Path(self.config.runs_dir) / ".cache"

    @property
    def device(self) -> torch.device:
        """Where to compute before the Trainer is there."""
        config = self.config.accelerator
        if config.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
            return torch.device("cpu")
        first = config.devices[0] if isinstance(config.devices, ListConfig) else 0
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", first)))


def factory(node: DictConfig) -> Callable[..., Any]:
    """The node's target with its keys bound, to be called with objects.

    What the target refuses is the config's mistake, and raised as a UserError.
    Objects never go through `instantiate` itself: it takes a dataclass instance for a config, and rebuilds it.
    """
    bound = instantiate(node, _partial_=True, _convert_="all")

    def make(*objects: Any, **named: Any) -> Any:
        try:
            return bound(*objects, **named)
        except UserError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{node._target_} refuses its keys: {' '.join(str(error).split())}") from error

    return make


def loaded(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The module with these weights. Raises UserError if they are another's."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            "the checkpoint's weights are not those of this network: another version of this software wrote it; use "
            "that one, or train anew"
        ) from error
    return module
