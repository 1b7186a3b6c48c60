"""The averaged weights with the run's config: a folder that every task opens as a run."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion.apps.export.places import without_places
from diffusion.callbacks.checkpoints import EXPORTED, save_weights
from diffusion.errors import UserError
from diffusion.random import seed_of
from diffusion.runs import Run


class ToSafetensors:
    """model.safetensors, names and values as in the checkpoint's "ema", and config.yaml."""

    library = "med-diffusion"

    def __init__(self, run: Run, config: DictConfig):
        if config.label is not None:
            raise UserError(f"label={config.label}: to={config.to} takes all classes along; leave it out")
        self.run = run
        self.generative = run.generative()

    def write(self, out: Path) -> None:
        content = self.run.load_checkpoint()
        save_weights(content | {"ema": self.run.weights()}, out / EXPORTED)
        OmegaConf.save(without_places(Run.open(self.run.directory).config), out / "config.yaml")

    def images(self, out: Path, n: int, seed: int) -> tuple[Tensor, Tensor]:
        # The codec is not in the folder; everything else is read from it.
        there = Run.open(out).under(OmegaConf.create({"guidance": None, "codec": self.run.config.codec}))
        spec, classes = self.run.spec, self.run.model.classes(self.run.spec)
        seeds = [seed_of(seed, i) for i in range(n)]
        label = None
        if classes is not None:
            label = torch.arange(n) % classes
            label = torch.nn.functional.one_hot(label, classes).float() if spec.multi_label else label
        cond = None if label is None else {"label": label}
        here, there = (model.sample(spec.shape, cond, seeds=seeds) for model in (self.generative, there.generative()))
        return here, there

    @property
    def usage(self) -> str:
        classes = self.run.model.classes(self.run.spec)
        first = "" if classes is None else "import torch\n\n"
        cond = "" if classes is None else f"{self._label(classes)}, "
        return (
            f"{first}from diffusion.runs import Run\n\n"
            'model = Run.open("FOLDER").generative()\n'
            f"images = model.sample({tuple(self.run.spec.shape)}, {cond}seeds=range(16))  # in [-1, 1]"
        )

    def _label(self, classes: int) -> str:
        label = f"torch.arange(16) % {classes}"
        return f'{{"label": torch.eye({classes})[{label}]}}' if self.run.spec.multi_label else f'{{"label": {label}}}'
