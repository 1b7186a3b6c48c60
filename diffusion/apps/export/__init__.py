"""python -m diffusion export: a trained model for other software, compared with the run before it is given away."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion.apps.export.card import card
from diffusion.apps.export.to_diffusers import ToDiffusers
from diffusion.apps.export.to_onnx import ToOnnx
from diffusion.apps.export.to_safetensors import ToSafetensors
from diffusion.apps.output import output_folder, progress
from diffusion.errors import UserError
from diffusion.runs import Run
from diffusion.tasks.pictures import save_rows
from diffusion.tasks.sample import check_positive, to_uint8

log = logging.getLogger("diffusion")

GREY_LEVEL = 2 / 255


class Export(Protocol):
    """A format, made of (run, config). Raises UserError for what it cannot hold, before anything is written."""

    library: str
    """The software that reads it, as the Hugging Face hub calls it."""
    usage: str
    """Lines of Python that draw from it; FOLDER is where it lies."""

    def write(self, out: Path) -> None: ...

    def images(self, out: Path, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """n images in about [-1, 1] from the same noise: of the run, and of what was written."""


FORMATS: dict[str, type[Export]] = {"diffusers": ToDiffusers, "safetensors": ToSafetensors, "onnx": ToOnnx}


def main(config: DictConfig) -> None:
    """Write the export with README.md, metrics.json, cases.csv and samples.png into the output folder."""
    check_positive(n=config.n)
    if config.to not in FORMATS:
        raise UserError(f"to={config.to}: give one of {', '.join(FORMATS)}")
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema)
    # What guides is no part of the model; whoever reads the export may guide it as they like.
    run = run.under(OmegaConf.create({"codec": config.codec, "guidance": None}))
    if run.config.get("control"):
        raise UserError(f"{run.directory} makes images for a control, which no format of `export` takes")
    export = FORMATS[config.to](run, config)
    out = output_folder(str(config.out or run.directory / "export" / config.to), config.overwrite)
    with progress() as bar:
        task = bar.add_task(f"exporting to {config.to}", total=2)
        export.write(out)
        bar.update(task, completed=1, description="comparing images")
        here, there = (images.clamp(-1, 1) for images in export.images(out, config.n, config.seed))
        bar.update(task, completed=2)
    differences = (here - there).abs().flatten(1).amax(1)
    largest = float(differences.max())
    save_rows({"the run": to_uint8(here), "the export": to_uint8(there)}, out / "samples.png")
    metrics = {
        "to": config.to,
        "n": config.n,
        "seed": config.seed,
        "largest_difference": largest,
        "step": run.position(),
        "weights": run.fingerprint(),
        "average": run.average,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    with (out / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "seed", "largest_difference"])
        rows.writerows([i, config.seed, f"{value:.3g}"] for i, value in enumerate(differences.tolist()))
    (out / "README.md").write_text(card(run, export, config, largest), encoding="utf-8")
    log.info("%d images from the same noise differ by up to %.2g, in images from -1 to 1: %s", config.n, largest, out)
    if not largest < GREY_LEVEL:
        log.warning("that is more than a grey level: look at %s before you use it", out / "samples.png")
