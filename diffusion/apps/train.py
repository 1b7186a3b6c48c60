"""python train.py: begin a run, or go on with one."""

from __future__ import annotations

import gc
import logging
import os
import re
import secrets
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from diffusion import callbacks as cb
from diffusion.apps.begin import based_on, module_of
from diffusion.apps.config import CONF, check_types
from diffusion.apps.launchers import RUN_ID, SWEEP, first_process, job_id, launched
from diffusion.apps.parts import TooLarge, in_smaller_parts, is_out_of_memory
from diffusion.apps.run_directory import LOG, begun, claimed, find_run, held_back, logging_to
from diffusion.apps.slurm import requeue
from diffusion.apps.trials import trial_id
from diffusion.compilation import check_mode, compiled
from diffusion.errors import Abandoned, Stopped, UserError
from diffusion.models import PARTS, Model, factory
from diffusion.processor import settle
from diffusion.runs import Run, build_model, data_section, datamodule_of
from diffusion.strategies import FullyShard

log = logging.getLogger("diffusion")

LEARNT = ("data", "processes", "wandb_id")
"""What config.yaml holds beside what was asked for: of the data, of the processes that began the run, of its page."""


def train(cfg: DictConfig) -> None:
    """Train what the config describes, until the first of its limits.

    Where a batch does not fit into memory, begin again with smaller parts of it. Raises UserError for what the user can
    mend, and Stopped after a signal, when the state has been saved.
    """
    settle()
    while True:
        try:
            return train_in_parts(cfg)
        except TooLarge as error:
            cfg.trainer.accumulate_grad_batches = error.parts
        # With the error have gone its frames, and what they held.
        gc.collect()
        torch.cuda.empty_cache()


def train_in_parts(cfg: DictConfig) -> None:
    """Train, a step of trainer.accumulate_grad_batches parts. Raises TooLarge where one does not fit into memory."""
    with cb.StopSignals() as signals, requeued(signals):
        # A process that Lightning has started is not alone: it stops with the others, at a step.
        signals.at_once = RUN_ID not in os.environ
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
        page = page_of(cfg)
        module.configure_optimizers()
        trainer = make_trainer(cfg, directory, callbacks_of(directory, cfg, model, module, datamodule, budget, signals))
        if isinstance(trainer.strategy, FullyShard):
            trainer.strategy.check(module)
        cfg.processes = trainer.world_size
        divide_steps(trainer, cfg, find_run(directory, cfg))
        signals.at_once = False
        with claimed(directory), logging_to(directory / LOG):
            run = begun(directory, cfg, data.files)
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
            if changed := other_division(trainer, cfg, run):
                log.info(changed)
            trainer.loggers = [metrics_csv(run, step)]
            if page:
                trainer.loggers += [page.of(run.directory, OmegaConf.to_container(cfg))]
            with page or nullcontext(), compiled([module.network], cfg.accelerator.compile, "accelerator.compile"):
                try:
                    fit(trainer, cfg, module, datamodule, signals, checkpoint)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    raise in_smaller_parts(trainer, cfg, step) from None
                if page:
                    show_files(page)
            log.info("finished; go on with\n  %s", model.next_command(directory))


@contextmanager
def requeued(signals: cb.StopSignals) -> Iterator[None]:
    """A body that SIGUSR1 stops, by which Slurm tells that the time is up: its job goes back into the queue.

    After SIGTERM it does not: a preempted job is put back by Slurm itself, and a cancelled one is to end.
    """
    try:
        yield
    except Stopped:
        if signals.received == signal.SIGUSR1 and job_id() and first_process():
            requeue()
        raise


def check(cfg: DictConfig) -> cb.Budget:
    """Hold the config to its types and ranges, and fill in the run id. Raises UserError. Returns the run's limits."""
    choices = HydraConfig.get().runtime.choices
    check_types(cfg, choices)
    check_mode(cfg.accelerator.compile, "accelerator.compile")
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
    if cfg.run_id is None:
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        trial = trial_id(HydraConfig.get().overrides.task) if multirun else None
        job = f"job-{job_id()}" if choices.accelerator == "slurm" and job_id() else None
        cfg.run_id = os.environ.get(RUN_ID) or trial or job or new_id()
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
            instead = f"use model.{override}" if group in cfg.model else "leave it out"
            raise UserError(f"{override}: this model has no {group}; {instead}")
    for group in idle:
        cfg[group] = None


def new_id() -> str:
    """An id from the clock."""
    if launched() > 1:
        raise UserError("several processes were started for one run: give them its name, run_id=NAME")
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def settled(cfg: DictConfig) -> DictConfig:
    """The config resolved, as plain values, with room for what is learnt."""
    return OmegaConf.create({**OmegaConf.to_container(cfg, resolve=True), **dict.fromkeys(LEARNT)})


def add_facts(cfg: DictConfig, model: Model, datamodule: pl.LightningDataModule, base: Run | None) -> None:
    """Fill in what the data and the model's other runs say."""
    # The network's coefficients are part of what its weights mean.
    std = base.config.data.std if base else model.std(datamodule)
    cfg.data = data_section(datamodule.spec, std, datamodule.fingerprint())
    if "teacher" in cfg.model:
        cfg.data.teacher_fingerprint = base.fingerprint()
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
    """Train from the checkpoint, or from the start.

    Raises Stopped after a signal, and Abandoned where another process has died.
    """
    started_by_lightning = RUN_ID in os.environ
    os.environ[RUN_ID] = cfg.run_id
    try:
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    except Stopped:
        name = signals.received.name if signals.received else "a signal to another process"
        log.info("stopped by %s at step %d, saved; the same command goes on", name, trainer.global_step)
        if started_by_lightning:
            sys.exit(0)  # else Lightning kills the first process, which may not have ended yet
        raise
    except Exception as error:
        if trainer.world_size > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise Abandoned(
                f"process {trainer.global_rank} is left alone: another process of the run has ended, look for its "
                "error; the same command goes on from the last checkpoint"
            ) from error
        raise
    finally:
        del os.environ[RUN_ID]


def page_of(cfg: DictConfig) -> cb.WandbPage | None:
    """The run's page on W&B, if the config asks for one, grouped by its sweep. Raises UserError if W&B refuses."""
    if not cfg.logger:
        return None
    if SWEEP in os.environ and cfg.logger.group is None:
        cfg.logger.group = Path(os.environ[SWEEP]).name
    return factory(cfg.logger)()


def show_files(page: cb.WandbPage) -> None:
    """The run's files on its page; a warning where W&B does not take them, for the run is finished all the same."""
    try:
        page.log_files()
    except UserError as error:
        log.warning("%s", error)


def metrics_csv(run: Run, step: int) -> cb.MetricsCSV:
    """The run's metrics.csv, cut back to where the run goes on."""
    logger = cb.MetricsCSV(run.directory / "metrics.csv")
    logger.cut_back(step)
    return logger


def make_trainer(cfg: DictConfig, directory: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """The trainer, without its loggers; nothing is written.

    Raises UserError for an accelerator, precision or strategy that Lightning refuses.
    """
    # Its hints on devices, workers and products drown the run's own lines.
    for package in ("pytorch_lightning", "lightning_fabric"):
        warnings.filterwarnings("ignore", module=package)
    for logger in ("pytorch_lightning", "lightning_fabric.utilities.distributed"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    try:
        return pl.Trainer(
            **{key: value for key, value in instantiate(cfg.accelerator, _convert_="all").items() if key != "compile"},
            logger=False,
            callbacks=callbacks,
            plugins=[cb.AtomicCheckpointIO()],
            max_epochs=-1,
            val_check_interval=cfg.trainer.validate_every_n_steps,
            check_val_every_n_epoch=None,
            gradient_clip_val=cfg.trainer.gradient_clip_val,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(directory),
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        plain = {key: value for key, value in cfg.accelerator.items() if not isinstance(value, DictConfig)}
        chosen = ", ".join(f"accelerator.{key}={value}" for key, value in plain.items())
        raise UserError(f"{chosen} is refused: {' '.join(str(error).split())}") from error


def divide_steps(trainer: pl.Trainer, cfg: DictConfig, run: Run | None) -> None:
    """Tell the trainer of how many batches, one after the other, its processes make up a step.

    As many as trainer.accumulate_grad_batches says; where that is what the run began with, and the number of processes
    is not, the fewest with which no process holds more images at once than those that the run began with. Raises
    UserError for a batch_size that cannot be divided so, and for other processes than were started.
    """
    processes, parts = cfg.processes, cfg.trainer.accumulate_grad_batches
    if launched() > 1 and trainer.num_devices * trainer.num_nodes != launched():
        raise UserError(
            f"{launched()} processes were started, but accelerator.devices={trainer.num_devices} and "
            f"accelerator.num_nodes={trainer.num_nodes}: use accelerator=gpu_ddp or cpu_ddp, which follow torchrun"
        )
    if run and run.processes != processes and run.config.trainer.accumulate_grad_batches == parts:
        most, share = cfg.batch_size // (run.processes * parts), cfg.batch_size // processes
        parts = next((n for n in range(1, share + 1) if share % n == 0 and share // n <= most), parts)
    if cfg.batch_size % (processes * parts):
        raise UserError(
            f"batch_size={cfg.batch_size} cannot be shared by {processes} processes x {parts} accumulated batches "
            f"(trainer.accumulate_grad_batches): choose a multiple of {processes * parts}"
        )
    trainer.accumulate_grad_batches = parts
    trainer.val_check_interval = cfg.trainer.validate_every_n_steps * parts


def other_division(trainer: pl.Trainer, cfg: DictConfig, run: Run) -> str | None:
    """A line that says how a step is divided, where it is not as it was when the run began."""
    parts, began = trainer.accumulate_grad_batches, run.config.trainer.accumulate_grad_batches
    if (cfg.processes, parts) == (run.processes, began):
        return None
    return (
        f"processes: {cfg.processes} (began with {run.processes}), accumulated batches: {parts} (began with {began}), "
        f"of {cfg.batch_size // (cfg.processes * parts)} images in each process"
    )


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
