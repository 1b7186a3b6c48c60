"""A few real steps: the network on the data, how fast it goes, what it takes, and whether it can learn one batch."""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion import callbacks as cb
from diffusion.apps.begin import based_on, module_of
from diffusion.apps.doctor.memory import Peak, held
from diffusion.apps.train import add_facts, callbacks_of, check_parts, make_trainer, settled
from diffusion.errors import UserError
from diffusion.models import Model
from diffusion.runs import build_model
from diffusion.tasks.reconstruct import evenly_spaced

LEARNT = (2, 16)
"""Images of the batch that is learnt by heart, at least and at most."""
FEW_STEPS, WANTED_STEPS = 30, 60
"""Steps on one batch below which its loss tells little, and how many there should be: of slow ones fewer images."""
ENOUGH = 0.05
"""Share of its first loss at which a batch counts as learnt."""
STEPS = 2000
FEW_IMAGES = 64

OnDone = Callable[[float], None]


@dataclass(frozen=True)
class Trial:
    """What the steps have shown.

    step_seconds: of an optimizer step, over all images of its batch on this one device; steps: how many were timed
    memory: bytes of parameters, gradients, optimizer, averaged; peak, while it trained; rest, beyond all of these
    losses: of each step on one batch, which has `learnt` images
    """

    network: str
    parameters: int
    device: str
    batch_size: int
    step_seconds: float
    steps: int
    memory: dict[str, int]
    losses: list[float]
    learnt: int

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.step_seconds


def trial(cfg: DictConfig, datamodule: pl.LightningDataModule, seconds: float, on_done: OnDone) -> Trial:
    """Build the model as training does, and train it for about `seconds`, half of them on one batch.

    Nothing stays on the disk. Raises UserError, or DataError, for what training would refuse.
    """
    with tempfile.TemporaryDirectory(prefix="med-diffusion-") as folder, quiet():
        cfg = on_one_device(settled(cfg), Path(folder))
        base = based_on(cfg)
        check_parts(cfg, model := build_model(cfg))
        data = model.data(some_of(datamodule, cfg.batch_size))
        add_facts(cfg, model, data, base)
        made = lambda: module_of(cfg, model, data, base)  # noqa: E731 - the same initial weights each time
        pace = Pace(seconds / 2, lambda share: on_done(share / 2))
        module, averaged = _timed(cfg, model, made(), data, pace, Path(folder))
        rest = max(0, pace.peak - pace.before - sum(averaged[key] for key in ("gradients", "optimizer", "averaged")))
        memory = averaged | {"peak": pace.peak, "rest": rest}
        count = round(seconds / 2 / WANTED_STEPS / pace.step_seconds * cfg.batch_size)
        count = min(max(LEARNT[0], count), LEARNT[1], cfg.batch_size, len(data.split("train")))
        losses = learn_one_batch(cfg, made(), data, count, seconds / 2, lambda share: on_done(0.5 + share / 2))
        return Trial(
            type(module.network).__name__,
            sum(p.numel() for p in module.network.parameters()),
            pace.device,
            cfg.batch_size,
            pace.step_seconds,
            len(pace.times),
            memory,
            losses,
            count,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what is said of the progress of things that are made for these few steps, and then dropped."""
    loggers = [logging.getLogger(name) for name in ("diffusion", "datamodules")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def on_one_device(cfg: DictConfig, folder: Path) -> DictConfig:
    """The config for one device with its share of the batch, that writes into `folder` alone and evaluates nothing."""
    devices = cfg.accelerator.get("devices", 1)
    count = len(devices) if OmegaConf.is_list(devices) else devices
    if count == -1:
        count = max(1, torch.cuda.device_count())
    share = max(1, cfg.batch_size // count) if isinstance(count, int) and count > 1 else cfg.batch_size
    one = [devices[0]] if OmegaConf.is_list(devices) else 1
    changed = {
        "runs_dir": str(folder),
        "logger": None,
        "batch_size": share,
        "accelerator": {"devices": one, "strategy": "auto", "num_nodes": 1},
    }
    cfg = OmegaConf.merge(cfg, changed)
    if cfg.callbacks.get("evaluation"):
        cfg.callbacks.evaluation.every_n_steps = None
    if cfg.perceptual and "steps" in signature(get_object(cfg.perceptual._target_)).parameters:
        cfg.perceptual.steps = 1  # an untrained judge takes as long
    return cfg


def some_of(datamodule: pl.LightningDataModule, batch_size: int) -> pl.LightningDataModule:
    """Enough images for a few batches: speed does not depend on how many there are."""
    wanted = {"train": max(FEW_IMAGES, 2 * batch_size), "val": FEW_IMAGES, "test": FEW_IMAGES}
    part = datamodule.part({name: evenly_spaced(len(datamodule.split(name)), n) for name, n in wanted.items()})
    part.batch_size = batch_size
    return part


def _timed(
    cfg: DictConfig, model: Model, module: pl.LightningModule, data: pl.LightningDataModule, pace: Pace, folder: Path
) -> tuple[pl.LightningModule, dict[str, int]]:
    budget = cb.Budget.of(cfg.trainer)
    with cb.StopSignals() as signals:
        everything = callbacks_of(folder, cfg, model, module, data, budget, signals)
    # The others write, validate, or end the run.
    chosen = [each for each in everything if isinstance(each, (cb.EMA, cb.LearningRate))]
    trainer = make_trainer(cfg, folder, [*chosen, pace])
    trainer.limit_val_batches = 0
    trainer.fit(module, data)
    averaged = next((each.average for each in chosen if isinstance(each, cb.EMA)), {})
    return module, held(module, trainer.optimizers[0], averaged)


class Pace(pl.Callback):
    """Times the optimizer steps, and ends after `seconds`; the first step, which sets up, is left out if it can be."""

    def __init__(self, seconds: float, on_done: OnDone):
        self.seconds, self.on_done = seconds, on_done
        self.times: list[float] = []
        self.peak, self.before, self.device = 0, 0, ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        device = pl_module.device
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._peak = Peak(device)
        self.before = self._peak.before
        self._start = self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"])  # waits for the device
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} in step {trainer.global_step}: lower optimizer.lr, or use 32-true")
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now = time.perf_counter()
        self.times.append(now - self._last)
        self._last = now
        self.on_done(min(1.0, (now - self._start) / self.seconds))
        if now - self._start + self.step_seconds > self.seconds:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.peak = self._peak.now()

    @property
    def step_seconds(self) -> float:
        settled_ = self.times[1:] or self.times
        return sum(settled_) / len(settled_)


class Again:
    """One batch, time after time."""

    def __init__(self, batch: Mapping[str, Tensor]):
        self.batch = batch

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        return itertools.repeat(self.batch)


class OneBatch(pl.LightningModule):
    """A module that sees the first step again and again: the same times, noise and dropped labels."""

    def __init__(self, module: pl.LightningModule):
        super().__init__()
        self.module = module
        self._first = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0, global_step=0)
        self.losses: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.module.configure_optimizers()

    def configure_gradient_clipping(self, *arguments: Any, **options: Any) -> None:
        self.module.configure_gradient_clipping(*arguments, **options)

    def on_train_start(self) -> None:
        self.module.trainer = self._first

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Any:
        found = self.module.training_step(batch, 0)
        self.losses.append(float((found["loss"] if isinstance(found, Mapping) else found).detach()))
        return found


class Until(pl.Callback):
    """Ends the steps on one batch: when it is learnt, or the time is over, which is doubled where steps are slow."""

    def __init__(self, seconds: float, on_done: OnDone):
        self.seconds, self.on_done = seconds, on_done

    def on_train_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: OneBatch, *_: Any) -> None:
        losses, seconds = pl_module.losses, time.perf_counter() - self._start
        used = seconds / (self.seconds if len(losses) >= FEW_STEPS else 2 * self.seconds)
        self.on_done(min(1.0, used))
        learnt = losses[-1] <= ENOUGH * losses[0] or not math.isfinite(losses[-1])
        trainer.should_stop = used >= 1 or learnt or len(losses) >= STEPS


def learn_one_batch(
    cfg: DictConfig,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    count: int,
    seconds: float,
    on_done: OnDone,
) -> list[float]:
    """The loss of each step on `count` images with the same noise, without a warm-up of the learning rate."""
    split = data.split("train")
    again = OneBatch(module)
    cfg = OmegaConf.merge(cfg, {"trainer": {"accumulate_grad_batches": 1}})
    with tempfile.TemporaryDirectory(prefix="med-diffusion-") as folder:
        trainer = make_trainer(cfg, Path(folder), [Until(seconds, on_done)])
        trainer.limit_val_batches = 0
        trainer.fit(again, Again(split[evenly_spaced(len(split), count)]))
    return again.losses
