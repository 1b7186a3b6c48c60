"""python train.py: begin a run, or go on with one."""

from __future__ import annotations

import logging
import os
import re
import secrets
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from diffusion import callbacks as cb
from diffusion.apps.begin import based_on, module_of
from diffusion.apps.config import CONF, check_types
from diffusion.apps.run_directory import (
    LOG,
    claimed,
    find_run,
    first_process,
    held_back,
    logging_to,
    start_run,
    started_by_srun,
)
from diffusion.errors import Stopped, UserError
from diffusion.models import PARTS, Model, factory
from diffusion.random import seed_of
from diffusion.runs import Run, build_model, data_section, datamodule_of

log = logging.getLogger("diffusion")

RUN_ID = "MED_DIFFUSION_RUN_ID"
"""Tells the processes that Lightning starts for one run its id."""
LAUNCHER_VARIABLES = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")


def train(cfg: DictConfig) -> None:
    """Train what the config describes, until the first of its limits.

    Raises UserError for what the user can mend, and Stopped after a signal, when the state has been saved.
    """
    with cb.StopSignals() as signals:
        signals.at_once = True
        budget = check(cfg)
        cfg = settled(cfg)
        with held_back() as said:
            base = based_on(cfg)
            model = build_model(cfg)
            check_parts(cfg, model)
            data = datamodule_of(cfg)
            datamodule = model.data(data)
            add_facts(cfg, model, datamodule, base)
            module = module_of(cfg, model, datamodule, base)

        directory = Path(cfg.runs_dir) / cfg.experiment / cfg.run_id
        # All that can refuse does so before the run is begun.
        module.configure_optimizers()
        trainer = make_trainer(cfg, directory, callbacks_of(directory, cfg, model, module, datamodule, budget, signals))
        find_run(directory, cfg)
        signals.at_once = False
        with claimed(directory), logging_to(directory / LOG):
            run = find_run(directory, cfg) or start_run(directory, cfg, data.files)
            checkpoint = run.newest_checkpoint()
            if first_process():
                run.set_damaged_aside()
            step = run.position(checkpoint, budget) if checkpoint else 0
            for record in said if first_process() else ():
                logging.getLogger(record.name).handle(record)
            if checkpoint and budget.reached(step):
                how = "was ended by its evaluation" if budget.ended else "is finished"
                next_ = "begin another run_id" if budget.ended else "a larger limit goes on"
                log.info("run %s %s (step %d, %s): %s", directory, how, step, clock(budget.elapsed()), next_)
                return
            size = sum(p.numel() for p in module.network.parameters()) / 1e6
            network = f"{type(module.network).__name__} ({size:.2f} M parameters)"
            log.info("%s  %s on %s", directory, network, datamodule.source)
            if checkpoint:
                log.info("continues from step %d (%s)", step, checkpoint.name)
            trainer.loggers = loggers_of(run, cfg, step)
            fit(trainer, cfg, module, datamodule, signals, checkpoint)
            log.info("finished; go on with\n  %s", model.next_command(directory))


def check(cfg: DictConfig) -> cb.Budget:
    """Hold the config to its types and ranges, and fill in the run id. Raises UserError. Returns the run's limits."""
    choices = HydraConfig.get().runtime.choices
    check_types(cfg, choices)
    if cfg.resume not in ("auto", "never"):
        raise UserError(f"resume={cfg.resume}: give auto or never")
    positive = {f"trainer.{key}": cfg.trainer[key] for key in cfg.trainer if key not in ("max_time", "max_steps")}
    positive |= {"batch_size": cfg.batch_size, "checkpoint.every_n_steps": cfg.checkpoint.every_n_steps}
    positive |= {"trainer.max_steps": cfg.trainer.max_steps}
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise UserError(f"{key}={value}: give a number above 0")
    if cfg.trainer.max_steps is None and cfg.trainer.max_time is None:
        raise UserError("the run would never end: set trainer.max_steps or trainer.max_time")
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    launched = started_by_srun() or any(name in os.environ for name in LAUNCHER_VARIABLES)
    if multirun and cfg.accelerator.devices != 1 and not launched:
        raise UserError(
            f"-m with accelerator.devices={cfg.accelerator.devices}: every process would start the sweep again; "
            "use one device a trial, or start each trial by torchrun or srun"
        )
    if cfg.batch_size % cfg.trainer.accumulate_grad_batches:
        raise UserError(
            f"batch_size={cfg.batch_size} cannot be shared by trainer.accumulate_grad_batches="
            f"{cfg.trainer.accumulate_grad_batches} batches: choose a multiple"
        )
    if choices.model == "latent_ddpm" and choices.codec == "identity":
        raise UserError("model=latent_ddpm needs a codec: codec=autoencoder codec.run=RUN_DIR, or codec=diffusers")
    if choices.model == "pixel_ddpm" and choices.codec in ("autoencoder", "diffusers"):
        raise UserError(f"codec={choices.codec} makes latents: use model=latent_ddpm")
    if choices.codec == "autoencoder" and choices.model == "latent_ddpm" and cfg.codec.run is None:
        raise UserError(
            f"there is no autoencoder yet: train one with `{first_stage(choices.experiment)}`, then codec.run=RUN_DIR"
        )
    # Hydra reads 2024_01_01 as a number; the name is what was typed.
    typed = [o.split("=", 1)[1].strip("'\"") for o in HydraConfig.get().overrides.task if o.startswith("run_id=")]
    if typed and cfg.run_id is not None:
        cfg.run_id = typed[-1]
    if multirun and cfg.run_id is not None:
        raise UserError(
            f"run_id={cfg.run_id} with -m: the trials make their own ids from their overrides; leave it out"
        )
    if cfg.run_id is None:
        cfg.run_id = os.environ.get(RUN_ID) or (sweep_id() if multirun else new_id())
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]*", cfg.run_id):
        raise UserError(f"run_id={cfg.run_id}: use letters, digits and _ . , = + - only; it names one folder")
    return cb.Budget.of(cfg.trainer)


def first_stage(experiment: str) -> str:
    """The command that trains the autoencoder for a latent experiment, on the data set of this command line."""
    stages = [f"{experiment.removesuffix('_latent').removesuffix('_pixel')}_{kind}" for kind in ("vae", "vq")]
    there = [name for name in stages if (CONF / "experiment" / f"{name}.yaml").exists()]
    chosen = f"experiment={there[0]}" if there else "model=autoencoder_kl"
    data = [o for o in HydraConfig.get().overrides.task if o.startswith(("dataset=", "dataset."))]
    return " ".join(["python train.py", chosen, *data])


def check_parts(cfg: DictConfig, model: Model) -> None:
    """Raises UserError if the command sets a part that the model does not have; the others are set to null."""
    idle = PARTS - model.parts
    for override in HydraConfig.get().overrides.task:
        group = re.split(r"[.=]", override.lstrip("+~"))[0]
        if group in idle and not override.endswith("=none"):
            raise UserError(f"{override}: this model has no {group}; leave it out")
    for group in idle:
        cfg[group] = None


def new_id() -> str:
    """An id from the clock."""
    if not first_process():
        raise UserError("several processes were started for one run: give them its name, run_id=NAME")
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def sweep_id() -> str:
    """The id of a multirun's trial: its sorted overrides, so that the same sweep finds the same runs again."""
    ignored = ("runs_dir=", "logger=", "logger.", "run_id=")
    overrides = sorted(o for o in HydraConfig.get().overrides.task if not o.lstrip("+~").startswith(ignored))
    name = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", ",".join(overrides)).strip(".,=+-") or "defaults"
    unchanged = name == ",".join(overrides) and len(name) <= 200
    return name if unchanged else f"{name[:180]}-{seed_of(*overrides):016x}"


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def settled(cfg: DictConfig) -> DictConfig:
    """The config resolved, as plain values, with room for what is learnt of the data."""
    return OmegaConf.create({**OmegaConf.to_container(cfg, resolve=True), "data": None, "wandb_id": None})


def add_facts(cfg: DictConfig, model: Model, datamodule: pl.LightningDataModule, base: Run | None) -> None:
    """Fill in what the data and the model's other runs say."""
    # The network's coefficients are part of what its weights mean.
    std = base.config.data.std if base else model.std(datamodule)
    cfg.data = data_section(datamodule.spec, std, datamodule.fingerprint())
    for key, value in model.facts(datamodule).items():
        OmegaConf.update(cfg, key, value)


def fit(
    trainer: pl.Trainer,
    cfg: DictConfig,
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    signals: cb.StopSignals,
    checkpoint: Path | None,
) -> None:
    """Train from the checkpoint, or from the start. Raises Stopped after a signal."""
    os.environ[RUN_ID] = cfg.run_id
    try:
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    except Stopped:
        name = signals.received.name if signals.received else "a signal to another process"
        log.info("stopped by %s at step %d, saved; the same command goes on", name, trainer.global_step)
        raise
    except Exception as error:
        if type(error).__module__.startswith("wandb"):
            raise UserError(f"{error}; `wandb login` first, or use logger=wandb_offline") from error
        raise
    finally:
        del os.environ[RUN_ID]
        if cfg.logger:
            import wandb

            # Two runs in one process, as in a multirun, would otherwise share a page.
            wandb.finish()


def loggers_of(run: Run, cfg: DictConfig, step: int) -> list[Logger]:
    """metrics.csv, cut back to where the run goes on, and the logger that the config asks for."""
    metrics_csv = cb.MetricsCSV(run.directory / "metrics.csv")
    metrics_csv.cut_back(step)
    if not cfg.logger:
        return [metrics_csv]
    # The id was made with the run, so a run that goes on appends to its own page.
    identity = {"id": cfg.wandb_id, "name": f"{cfg.experiment}/{cfg.run_id}", "resume": "allow"}
    config = OmegaConf.to_container(cfg)
    return [metrics_csv, factory(cfg.logger)(**identity, save_dir=str(run.directory), config=config)]


def make_trainer(cfg: DictConfig, directory: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """The trainer, without its loggers; nothing is written.

    Raises UserError for an accelerator, precision or strategy that Lightning refuses.
    """
    # Its hints on devices, workers and products drown the run's own lines.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    try:
        return pl.Trainer(
            **cfg.accelerator,
            logger=False,
            callbacks=callbacks,
            plugins=[cb.AtomicCheckpointIO()],
            max_epochs=-1,
            val_check_interval=cfg.trainer.validate_every_n_steps * cfg.trainer.accumulate_grad_batches,
            check_val_every_n_epoch=None,
            accumulate_grad_batches=cfg.trainer.accumulate_grad_batches,
            gradient_clip_val=cfg.trainer.gradient_clip_val,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(directory),
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        chosen = ", ".join(f"accelerator.{key}={value}" for key, value in cfg.accelerator.items())
        raise UserError(f"{chosen} is refused: {' '.join(str(error).split())}") from error


def callbacks_of(
    directory: Path,
    cfg: DictConfig,
    model: Model,
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    budget: cb.Budget,
    signals: cb.StopSignals,
) -> list[pl.Callback]:
    """All callbacks, in the order that they act in: what a step or a validation brings, then its checkpoint."""
    ema = instantiate(cfg.callbacks.ema)
    metrics = cb.MetricsLog(budget, cfg.batch_size, cfg.trainer.log_every_n_steps)
    return [
        budget,
        factory(cfg.callbacks.learning_rate)(budget=budget),
        ema,
        metrics,
        *model.callbacks(module, datamodule, directory, ema, budget),
        cb.LossFigure(directory / "metrics.csv", directory / "figures" / "loss.png"),
        cb.ProgressBar(budget, metrics),
        cb.Checkpoints(Run(directory, cfg).checkpoints, cfg.checkpoint.every_n_steps, signals),
    ]
