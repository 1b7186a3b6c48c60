"""Pictures of what the model makes, while it trains, always from the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl

from diffusion.callbacks.ema import EMA
from diffusion.generative import GenerativeModel
from diffusion.tasks.pictures import columns_of, save_grid, save_strip
from diffusion.tasks.sample import Trajectory, check_positive, labels_of, sample


class Previews(pl.Callback):
    """After a validation, at most every `every_n_steps` and at the end: samples of the averaged weights.

    Writes samples/step_N.png, a grid of n samples (the classes in turn), and samples/denoising_N.png, a strip that
    shows a few of them on their way from noise; W&B gets both.
    """

    def __init__(
        self,
        generative: GenerativeModel,
        shape: Sequence[int],
        classes: int | None,
        folder: Path,
        ema: EMA,
        n: int = 64,
        strip: int = 6,
        every_n_steps: int = 1000,
        seed: int = 0,
    ):
        counts = {"n": n, "strip": strip, "every_n_steps": every_n_steps}
        check_positive(**{f"callbacks.previews.{name}": value for name, value in counts.items()})
        self.generative, self.shape, self.classes, self.folder, self.ema = generative, shape, classes, folder, ema
        self.n, self.strip, self.every_n_steps, self.seed = n, strip, every_n_steps, seed

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self.every_n_steps and not trainer.should_stop):
            return
        labels = labels_of("all", self.n, self.classes)
        with self.ema.applied(pl_module.trained):
            trajectory = Trajectory(self.strip, self.generative.codec)
            images = sample(
                self.generative, self.shape, self.n, labels, self.seed, batch_size=self.n, on_step=trajectory
            )
        self.folder.mkdir(exist_ok=True)
        pictures = {
            "samples": self.folder / f"step_{step:07d}.png",
            "denoising": self.folder / f"denoising_{step:07d}.png",
        }
        save_grid(images, pictures["samples"], columns_of(self.n, self.classes))
        save_strip(trajectory.strip(), pictures["denoising"])
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                for name, path in pictures.items():
                    logger.log_image(key=f"samples/{name}", images=[str(path)], step=step)
