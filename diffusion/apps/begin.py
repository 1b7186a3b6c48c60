"""A run that begins from another: by finetune.from, network.base (of a ControlNet) or model.teacher (of a student)."""

from __future__ import annotations

import logging
import re

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from datamodules.batch import DataSpec
from diffusion.errors import UserError
from diffusion.finetune import begin, choose, layered
from diffusion.models import Diffusion, Distilled, Model, unfit
from diffusion.runs import Run

log = logging.getLogger("diffusion")

MEANING = ("scheduler", "parameterization", "codec")
TAKEN = {
    "finetune.from": ("model", *MEANING, "network", "control"),
    "network.base": ("model", *MEANING),
    "model.teacher": (*MEANING, "network", "control", "augmentation"),
}
"""The groups by which the weights have their meaning: they are those of the run that is begun from."""


def based_on(cfg: DictConfig) -> Run | None:
    """The run that the config begins from, or None; the config takes the parts over that have to be that run's.

    Raises UserError where there is no such run, it is not a diffusion model's, or the command line asks for other
    parts.
    """
    tuned = cfg.finetune["from"]
    for override in HydraConfig.get().overrides.task:
        if tuned is None and override.startswith("finetune.") and not override.startswith("finetune.from="):
            raise UserError(f"{override} needs finetune.from=RUN_DIR, the run to begin from")
    if "teacher" in cfg.model and cfg.model.teacher is None:
        raise UserError("model=distilled needs model.teacher=RUN_DIR, the run that it learns from")
    asked = {
        "finetune.from": tuned,
        "network.base": cfg.network.get("base") if cfg.network else None,
        "model.teacher": cfg.model.get("teacher"),
    }
    asked = {key: directory for key, directory in asked.items() if directory is not None}
    if not asked:
        return None
    if len(asked) > 1:
        raise UserError(
            f"{' and '.join(asked)}: a run begins from one other; make one of the two, then go on from that"
        )
    ((key, directory),) = asked.items()
    base = Run.open(directory, key=key)
    if not isinstance(base.model, Diffusion):
        raise UserError(f"{key}={base.directory} is of {base.config.experiment}: give the run of a diffusion model")
    if isinstance(base.model, Distilled):
        raise UserError(f"{key}={base.directory} is a student of few steps: give its teacher, {base.model.teacher}")
    taken = TAKEN[key]
    for override in HydraConfig.get().overrides.task:
        group = re.split(r"[.=]", override.lstrip("+~"))[0]
        if group in taken and not override.startswith("codec.run="):
            raise UserError(f"{override}: a run that begins from {base.directory} has its {group}; leave it out")
    given = OmegaConf.to_container(base.config, resolve=True)
    if key == "model.teacher":
        if reason := unfit(base.model, base.spec):
            raise UserError(f"{key}={base.directory} {reason}: give another diffusion model's run")
        cfg.model.condition, cfg.model.noise = given["model"]["condition"], given["model"]["noise"]
    if key == "network.base":
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
    if isinstance(model, Distilled):
        check_same(base, datamodule.spec)
        return model.taught(module, base.generative().denoiser, weights)
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


def check_same(teacher: Run, spec: DataSpec) -> None:
    """Raises UserError where a student's data are not of the shape and the classes of its teacher's."""
    kinds = [
        (each.shape, each.classes, each.multi_label, tuple(each.class_names or ())) for each in (teacher.spec, spec)
    ]
    if kinds[0] != kinds[1]:
        said = [
            f"images of shape {shape} and {', '.join(names) or classes or 'no'} classes"
            for shape, classes, _, names in kinds
        ]
        raise UserError(
            f"model.teacher={teacher.directory} makes {said[0]}, but these data are {said[1]}: choose the same"
        )


def _told(base: Run, model: Diffusion, spec: DataSpec) -> list[tuple[DataSpec, bool]]:
    """What the base and the new run are of, and whether their networks are told the classes."""
    return [(base.spec, base.model.told(base.spec) is not None), (spec, model.told(spec) is not None)]
