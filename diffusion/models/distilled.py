"""model=distilled: a student that draws in a few steps what its teacher draws in many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.denoiser import Denoiser, NetworkDenoiser
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.models.base import Weights, factory
from diffusion.models.diffusion import Diffusion
from diffusion.modules import DiffusionModule
from diffusion.networks import Frozen
from diffusion.objectives import Distillation

SAMPLER = {"_target_": "diffusion.samplers.ddim", "_partial_": True, "eta": 0.0}
"""The steps that the objective is of."""


class Distilled(Diffusion):
    """A denoiser made of its teacher's parts; objective, guidance, sampler and grid are settled by what it learns.

    Args:
        teacher: the run directory of a diffusion model, whose denoiser and weights `taught` is given.
        grid: the student's own steps.
        weighting, substeps: see `Distillation`.
        condition, noise: the teacher's.
        label_dropout: share of samples trained without their condition, as one that is asked for none answers.
    """

    parts = Diffusion.parts - {"objective", "guidance", "sampler", "grid"}
    level = None

    def __init__(
        self,
        config: DictConfig,
        grid: Mapping[str, Any],
        weighting: Mapping[str, Any],
        teacher: str | None = None,
        substeps: int = 8,
        condition: Sequence[str] = ("label",),
        label_dropout: float = 0.0,
        noise: str = "gaussian",
    ):
        super().__init__(config, condition=condition, label_dropout=label_dropout, noise=noise)
        self.teacher, self.substeps = teacher, substeps

    @cached_property
    def objective(self) -> Distillation:
        """As yet without the teacher."""
        node = self.config.model
        return Distillation(None, factory(node.grid)(), factory(node.weighting)(), self.substeps)

    def facts(self, datamodule: pl.LightningDataModule) -> dict[str, Any]:
        return super().facts(datamodule) | {"sampler": SAMPLER, "grid": self.config.model.grid}

    def taught(self, module: DiffusionModule, teacher: Denoiser, weights: Mapping[str, Tensor]) -> DiffusionModule:
        """The module that learns from this teacher, guided or not, and begins with its averaged weights."""
        module.denoiser.load_state_dict(weights)
        # Held so, it moves with the module, and is no part of what learns or is saved.
        module.teacher = Frozen(teacher)
        module.objective = replace(module.objective, teacher=teacher)
        return module

    def check_posterior_mean(self) -> None:
        raise UserError(
            f"a student of few steps answers with where they lead, which is not the mean of all images that fit: give "
            f"its teacher, {self.teacher}"
        )

    def sampled(self, denoiser: NetworkDenoiser, spec: DataSpec, weights: Weights | None = None) -> GenerativeModel:
        """The denoiser with its own steps. Raises UserError where the config asks for others."""
        config = self.config
        if config.sampler != SAMPLER or config.grid != config.model.grid or config.guidance:
            raise UserError(
                f"a student is drawn by ddim in the steps that it has learnt ({config.model.grid.steps}), under the "
                f"guidance of its teacher: for another sampler, grid or guidance give that, {self.teacher}"
            )
        return super().sampled(denoiser, spec, weights)


def unfit(model: Diffusion, spec: DataSpec) -> str | None:
    """What keeps a run's model from being a teacher, in a few words, or None."""
    config, told = model.config, model.told(spec)
    reasons = {
        "draws masks": model.target != "image",
        "knows a single noise level": model.level is not None,
        "has seen parts of images only (model.known)": model.known is not None,
        "is a ControlNet, whose trunk does not learn": "trunk" in config.network,
        "has learnt its covariance, and a student's steps draw no noise": model.objective.bound is not None,
        "has learnt its schedule": factory(config.scheduler)().learns,
        "is led to classes that its network is not told": model.makes_images and told != model.classes(spec),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
