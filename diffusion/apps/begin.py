"""A run that begins from another: finetune.from=RUN_DIR, or network=controlnet network.base=RUN_DIR."""

from __future__ import annotations

import logging
import re

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from datamodules.batch import DataSpec
from diffusion.errors import UserError
from diffusion.finetune import begin, choose, layered
from diffusion.models import Diffusion, Model
from diffusion.runs import Run

log = logging.getLogger("diffusion")

TAKEN = ("model", "scheduler", "parameterization", "codec")
"""The groups by which the weights have their meaning: they are those of the run that is begun from."""


def based_on(cfg: DictConfig) -> Run | None:
    """The run that the config begins from, or None; the config takes the parts over that have to be that run's.

    Raises UserError where there is no such run, it is not a diffusion model's, or the command line asks for other
    parts.
    """
    tuned, steered = cfg.finetune["from"], cfg.network.get("base") if cfg.network else None
    for override in HydraConfig.get().overrides.task:
        if tuned is None and override.startswith("finetune.") and not override.startswith("finetune.from="):
            raise UserError(f"{override} needs finetune.from=RUN_DIR, the run to begin from")
    if tuned is None and steered is None:
        return None
    if tuned is not None and steered is not None:
        raise UserError("finetune.from and network.base: a run begins from one other; steer first, then fine-tune that")
    key = "finetune.from" if tuned is not None else "network.base"
    base = Run.open(tuned if tuned is not None else steered, key=key)
    if not isinstance(base.model, Diffusion):
        raise UserError(f"{key}={base.directory} is of {base.config.experiment}: give the run of a diffusion model")
    taken = (*TAKEN, "network", "control") if tuned is not None else TAKEN
    for override in HydraConfig.get().overrides.task:
        group = re.split(r"[.=]", override.lstrip("+~"))[0]
        if group in taken and not override.startswith("codec.run="):
            raise UserError(f"{override}: a run that begins from {base.directory} has its {group}; leave it out")
    given = OmegaConf.to_container(base.config, resolve=True)
    if steered is not None:
        if (
            given.get("control")
            or given["model"].get("known")
            or given["network"].get("pretrained")
            or "trunk" in given["network"]
        ):
            raise UserError(
                f"{key}={base.directory}: give a run of a U-Net that is told nothing but a class, of whole images"
            )
        cfg.network.trunk = OmegaConf.create({**given["network"], "_partial_": True})
    for group in taken:
        cfg[group] = given.get(group)
    return base


def module_of(
    cfg: DictConfig, model: Model, datamodule: pl.LightningDataModule, base: Run | None
) -> pl.LightningModule:
    """The module that is trained: with the base's averaged weights, of which those learn that the config says."""
    module = model.module(datamodule)
    if base is None:
        return module
    base.warn_if_unfinished()
    weights = base.model.trained_denoiser(base.spec, base.weights()).state_dict()
    if cfg.finetune["from"] is None:
        module.network.begin({name.removeprefix("network."): value for name, value in weights.items()})
        return module
    if None in (base.spec.class_names, datamodule.spec.class_names) and datamodule.spec.classes and base.spec.classes:
        log.warning("these data or those of %s have no names for their classes: told apart by number", base.directory)
    then, now = (each.names if told else () for each, told in _told(base, model, datamodule.spec))
    new = begin(module.trained, weights, then, now)
    if cfg.finetune.unfreeze == "token" and not new:
        raise UserError("finetune.unfreeze=token: the run knows all classes of these data by their names already")
    choose(module.trained, cfg.finetune.unfreeze, new, updates=cfg.finetune.lora is not None)
    module.optimizer = layered(module.optimizer, module.trained, cfg.finetune.lr_decay, cfg.finetune.token_lr)
    return module


def _told(base: Run, model: Diffusion, spec: DataSpec) -> list[tuple[DataSpec, bool]]:
    """What the base and the new run are of, and whether their networks are told the classes."""
    return [(base.spec, base.model.told(base.spec) is not None), (spec, model.told(spec) is not None)]
