"""What every choice of the group `model` can be asked."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from datamodules.batch import DataSpec
from diffusion.callbacks import EMA, Budget
from diffusion.codecs import Codec
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel

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
        "perceptual",
        "discriminator",
    ]
)
"""The groups that describe a model; each kind of model is made of some of them."""


class Model(ABC):
    """A kind of model, with the whole config of its run."""

    parts: frozenset[str]
    """The groups of PARTS that this kind is made of; the others mean nothing to it."""
    next_task: str
    """What a user does with a finished run."""

    def __init__(self, config: DictConfig):
        self.config = config

    def data(self, datamodule: pl.LightningDataModule) -> pl.LightningDataModule:
        """The data as this model trains on them."""
        return datamodule

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

    def _makes_no_images(self) -> str:
        return (
            f"a run of {self.config.experiment} makes no images from noise: use `python -m diffusion {self.next_task}`"
        )

    def generative(self, spec: DataSpec, checkpoint: Callable[[], Mapping[str, Any]]) -> GenerativeModel:
        """The trained model with the config's sampler, grid and guidance. Raises UserError if it makes no images."""
        raise UserError(self._makes_no_images())

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
