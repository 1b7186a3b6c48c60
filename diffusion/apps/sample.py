"""python -m diffusion sample: synthetic images of a run, as an array, a grid and an animation."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.apps.conditions import Asked, adherence, asked_for, judge_of, save_pairs
from diffusion.apps.output import best_device, leave_to_the_first, output_folder, progress
from diffusion.compilation import check_mode, compiled
from diffusion.errors import UserError
from diffusion.processes import place
from diffusion.runs import Run
from diffusion.tasks.edit_figure import save_columns
from diffusion.tasks.pictures import columns_of, save_animation, save_grid
from diffusion.tasks.sample import (
    Trajectory,
    check_positive,
    counted_evaluations,
    labels_of,
    networks_of,
    of_label,
    sample,
    to_uint8,
    to_uint16,
)
from diffusion.tasks.segment import Segmenter

log = logging.getLogger("diffusion")

GRID_LIMIT = 256
STEERED = 8
"""Cases in the picture of controls beside what was made."""
ANIMATED = 64


def main(config: DictConfig) -> None:
    """Write samples.npz, grid.png, trajectory.gif, metrics.json and cases.csv into the output folder."""
    check_positive(n=config.n, batch_size=config.batch_size)
    check_mode(config.compile, "compile")
    if config.precision not in (None, "bf16"):
        raise UserError(f"precision={config.precision}: give bf16, or null for float32")
    if config.bits not in (8, 16):
        raise UserError(f"bits={config.bits}: give 8 or 16")
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema).under(config)
    device = best_device(config.device)
    generative = run.generative(device)
    classes, asked = run.model.classes(run.spec), asked_for(run, config)
    if asked and config.label is None and asked.labels is not None and classes is not None:
        labels = asked.labels  # those of the images that the controls are of
    else:
        labels = labels_of(numbered(config.label, run.spec), config.n, classes)
    cond = of_label(labels) | steering(run, asked, config)
    judge = judge_of(config, asked, device) if asked else None
    out = output_folder(str(config.out or run.directory / "sample"), config.overwrite)
    trajectory = Trajectory(ANIMATED, generative.codec)
    start = time.perf_counter()
    with (
        progress() as bar,
        counted_evaluations(generative.denoiser) as evaluations,
        compiled(networks_of(generative.denoiser), config.compile, "compile"),
        torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        task = bar.add_task("sampling", total=config.n)
        images = sample(
            generative,
            run.spec.shape,
            config.n,
            cond,
            config.seed,
            config.batch_size,
            on_step=trajectory,
            on_batch=lambda done: bar.update(task, completed=done),
            convert=to_uint8 if config.bits == 8 else to_uint16,
        )
    leave_to_the_first()
    seconds = time.perf_counter() - start
    write_images(out, images, labels, trajectory)
    steered = write_steered(out, asked, eight_bits(images), judge, config, device) if asked else {}
    metrics = {
        "n": config.n,
        "seed": config.seed,
        "seconds": round(seconds, 3),
        "images_per_second": round(config.n / seconds, 2),
        "evaluations_per_image": evaluations() / -(-config.n // place()[1]),
        "sampler": config.sampler._target_.rsplit(".", 1)[-1],
        "steps": config.grid.steps,
        "guidance": config.guidance.scale if config.guidance else None,
        "ema": run.average,
        "precision": config.precision,
        **steered,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    write_cases(out / "cases.csv", config.seed, config.n, labels)
    log.info("%d images in %.1f s: %s", config.n, seconds, out / "grid.png")


def numbered(label: Any, spec: DataSpec) -> Any:
    """The label with names of classes as their numbers; what is no name is left as it is."""
    if isinstance(label, Sequence) and not isinstance(label, str):
        return [numbered(one, spec) for one in label]
    return spec.names.index(str(label)) if str(label) in (spec.class_names or ()) and type(label) is not int else label


def write_images(out: Path, images: Tensor, labels: Tensor | None, trajectory: Trajectory) -> None:
    """samples.npz, grid.png and trajectory.gif. images: uint8 or uint16 (n, C, *S)."""
    arrays = {"images": images.movedim(1, -1).numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    np.savez_compressed(out / "samples.npz", **arrays)
    shown = eight_bits(images[:GRID_LIMIT])
    save_grid(shown, out / "grid.png", columns_of(len(shown), None if labels is None else len(labels.unique())))
    frames = trajectory.frames()
    save_animation(frames, out / "trajectory.gif", columns_of(len(frames[0]), None))


def eight_bits(images: Tensor) -> Tensor:
    return images.float().div(257).round().to(torch.uint8) if images.dtype is torch.uint16 else images


def steering(run: Run, asked: Asked | None, config: DictConfig) -> dict[str, Tensor]:
    """What a steered network is told; another is told nothing. Raises UserError for a control_scale of no use."""
    if config.control_scale != 1 and "trunk" not in run.config.network:
        raise UserError(
            f"control_scale={config.control_scale}: only a ControlNet's control can be weighed; leave it out"
        )
    if asked is None:
        return {}
    if not isinstance(config.control_scale, (int, float)) or not math.isfinite(config.control_scale):
        raise UserError(f"control_scale={config.control_scale}: give a number; 1 is as trained, 0 leaves it out")
    return {"control": asked.controls, "scale": torch.full((config.n,), float(config.control_scale))}


def write_steered(
    out: Path, asked: Asked, images: Tensor, judge: Segmenter | None, config: DictConfig, device: torch.device
) -> dict[str, Any]:
    """steered.png, pairs/ where masks were asked for, and what metrics.json has of it."""
    figures: dict[str, Any] = {"controls": asked.source, "control_scale": config.control_scale}
    columns = {"asked for": asked.shown(), "made": images}
    if judge is not None:
        figures["adherence"], found = adherence(judge, images, asked, config, device)
        columns["found in it"] = asked.as_picture(found)
        for name in ("asked", "shuffled"):
            whose = "asked for" if asked.control.source == "mask" else "of the images that the controls are of"
            whose = whose if name == "asked" else "of others"
            log.info("Dice with the masks %s: %.3f", whose, figures["adherence"][name]["mean_dice"]["value"])
    if asked.images is not None:
        columns["the real image"] = asked.images
    save_columns({name: each[:STEERED] for name, each in columns.items()}, out / "steered.png")
    if asked.control.source == "mask" and images.ndim == 4 and images.shape[1] in (1, 3):
        save_pairs(out / "pairs", images, asked.masks, asked.control.values)
    return figures


def write_cases(path: Path, seed: int, n: int, labels: Tensor | None) -> None:
    """One row for each image."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "seed", "label"])
        rows.writerows([i, seed, "" if labels is None else int(labels[i])] for i in range(n))
