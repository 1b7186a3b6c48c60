"""Pictures of what the model makes, while it trains, always from the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

from diffusion.callbacks.ema import EMA
from diffusion.denoiser import Cond
from diffusion.generative import GenerativeModel
from diffusion.tasks.pictures import before_each, columns_of, save_grid, save_strip
from diffusion.tasks.sample import Trajectory, check_positive, labels_of, of_label, sample, to_uint8


class Previews(pl.Callback):
    """After a validation, at most every `every_n_steps` and at the end: samples of the averaged weights.

    Writes samples/step_N.png, a grid of n samples (the classes in turn), and samples/denoising_N.png, a strip that
    shows a few of them on their way from noise; W&B gets both.

    asked: n -> what n samples are asked for; by default the classes in turn.
    shown: cond["control"] as images, each of which is put before the sample that it asked for.
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
        asked: Callable[[int], Cond] | None = None,
        shown: Callable[[Tensor], Tensor] | None = None,
    ):
        counts = {"n": n, "strip": strip, "every_n_steps": every_n_steps}
        check_positive(**{f"callbacks.previews.{name}": value for name, value in counts.items()})
        self.generative, self.shape, self.classes, self.folder, self.ema = generative, shape, classes, folder, ema
        self.n, self.strip, self.every_n_steps, self.seed = n, strip, every_n_steps, seed
        self.asked, self.shown = asked or (lambda n: of_label(labels_of("all", n, classes))), shown

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if step % self.every_n_steps and not trainer.should_stop:
            return
        cond = self.asked(self.n)
        with self.ema.applied(pl_module.trained):
            trajectory = Trajectory(self.strip, self.generative.codec)
            images = sample(
                self.generative,
                self.shape,
                self.n,
                cond,
                self.seed,
                batch_size=self.n,
                on_step=trajectory,
                convert=lambda images: to_uint8(self.generative.codec.shown(images)),
            )
        if not trainer.is_global_zero:
            return
        if self.shown:
            images = before_each(to_uint8(self.shown(cond["control"])), images)
        columns = 2 * columns_of((self.n + 1) // 2, None) if self.shown else columns_of(self.n, self.classes)
        self.folder.mkdir(exist_ok=True)
        pictures = {
            "samples": self.folder / f"step_{step:07d}.png",
            "denoising": self.folder / f"denoising_{step:07d}.png",
        }
        save_grid(images, pictures["samples"], columns)
        save_strip(trajectory.strip(), pictures["denoising"])
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                for name, path in pictures.items():
                    logger.log_image(key=f"samples/{name}", images=[str(path)], step=step)
