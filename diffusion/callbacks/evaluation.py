"""How good the images are, and whether they are copies, while the model trains."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from diffusion.callbacks.budget import Budget
from diffusion.callbacks.ema import EMA
from diffusion.errors import UserError
from diffusion.extractors import Extractor, extract
from diffusion.generative import GenerativeModel
from diffusion.metrics.comparison import compared
from diffusion.metrics.copies import CopyDetector
from diffusion.tasks.held_out import HeldOut
from diffusion.tasks.sample import check_positive, labels_of, of_label, sample

log = logging.getLogger("diffusion")

BEST_KID = "best_kid.ckpt"


class Evaluation(pl.Callback):
    """After a validation, at most every `every_n_steps` and at the end: n images of the averaged weights are judged.

    They are held against the validation split, as evaluate holds them against the test split, and searched for copies
    of training images, beside all held-out images, as audit does. Loggers get eval/fid, eval/kid, eval/precision,
    eval/recall, eval/density, eval/coverage and eval/copies, those that the numbers of images allow. best_kid.ckpt is
    the checkpoint of the lowest KID. If more than `max_copies` of the images are copies, the run has reached its end.

    classes: that the network is told, or None; seed: of the images, which are the same ones each time.
    Raises UserError for values out of range.
    """

    def __init__(
        self,
        generative: GenerativeModel,
        datamodule: pl.LightningDataModule,
        extractor: Extractor,
        classes: int | None,
        folder: Path,
        ema: EMA,
        budget: Budget,
        n: int = 500,
        every_n_steps: int = 1000,
        max_copies: float | None = None,
        seed: int = 0,
    ):
        if type(every_n_steps) is not int:
            raise UserError(f"callbacks.evaluation.every_n_steps={every_n_steps}: give a whole number, or null")
        check_positive(**{"callbacks.evaluation.n": n, "callbacks.evaluation.every_n_steps": every_n_steps})
        if max_copies is not None and (not isinstance(max_copies, (int, float)) or not 0 <= max_copies <= 1):
            raise UserError(f"callbacks.evaluation.max_copies={max_copies}: give a share from 0 to 1, or null")
        self.generative, self.extractor, self.classes = generative, extractor, classes
        self.folder, self.ema, self.budget = folder, ema, budget
        self.n, self.every_n_steps, self.max_copies, self.seed = n, every_n_steps, max_copies, seed
        self.shape = datamodule.spec.shape
        self.best = math.inf
        train, val, test = (datamodule.reference(name) for name in ("train", "val", "test"))
        held_out = HeldOut.of(train, val, test)
        parts = {"train": train, "val": val, "held out": held_out}
        features = {name: extract(extractor, part.images).values for name, part in parts.items()}
        self.real = features["val"]
        self.copies = CopyDetector(
            train.images, held_out.images, features["train"], features["held out"], list(held_out.splits.values())
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if self.budget.ended or (step % self.every_n_steps and not trainer.should_stop):
            return
        images = self._images(pl_module)
        figures = self._figures(images, pl_module) if trainer.is_global_zero else None
        figures = trainer.strategy.broadcast(figures)
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
        said = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in figures.items())
        log.info("step %d, %d images against the validation split: %s", step, self.n, said)
        if figures.get("eval/kid", math.inf) < self.best:
            self.best = figures["eval/kid"]
            trainer.save_checkpoint(self.folder / BEST_KID)
        if self.max_copies is not None and figures["eval/copies"] > self.max_copies:
            log.warning(
                "step %d: %.1f%% of the samples are copies of training images (limit %.1f%%): training ends here; %s "
                "is the checkpoint of the lowest KID",
                step,
                100 * figures["eval/copies"],
                100 * self.max_copies,
                BEST_KID,
            )
            self.budget.end()
            trainer.should_stop = True

    def _images(self, pl_module: pl.LightningModule) -> Tensor:
        labels = labels_of(None, self.n, self.classes)
        with self.ema.applied(pl_module.trained):
            return sample(self.generative, self.shape, self.n, of_label(labels), self.seed, batch_size=min(self.n, 256))

    def _figures(self, images: Tensor, pl_module: pl.LightningModule) -> dict[str, float]:
        self.extractor.to(pl_module.device)
        features = extract(self.extractor, images).values
        found, _ = compared(features, self.real)
        copies = float(self.copies(images, features).flagged.mean())
        return {f"eval/{name}": each.value for name, each in found.items()} | {"eval/copies": copies}
