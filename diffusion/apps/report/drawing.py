"""The samples that a page shows, drawn for it, beside real images, and their way from noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from diffusion.apps.output import progress
from diffusion.apps.report.pictures import (
    GALLERY,
    Animation,
    Picture,
    animation,
    frames_of,
    grid,
    reduced,
    reduction,
)
from diffusion.generative import GenerativeModel
from diffusion.runs import Run
from diffusion.tasks.pictures import columns_of, flat
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import Trajectory, labels_of, of_label, sample

MOST_CLASSES = 10
ANIMATED = 16


@dataclass(frozen=True)
class Row:
    """Generated images of one class, or of all under no name, and real ones."""

    name: str | None
    generated: Picture
    real: Picture | None


@dataclass(frozen=True)
class Drawn:
    """All that a page shows of a model's samples."""

    rows: list[Row]
    animation: Animation
    caption: str
    note: str | None


def drawn(run: Run, config: DictConfig, device: torch.device, datamodule: Any, reason: str | None) -> Drawn:
    """Samples as `sample` draws them, the classes in turn; `reason` says why `datamodule` is None.

    Raises UserError where the run can draw none.
    """
    spec, classes = run.spec, run.model.classes(run.spec)
    generative = run.generative(device)
    of_each = classes is not None and classes <= MOST_CLASSES
    n = config.n * (classes if of_each else 8)
    labels = labels_of(None, n, classes)
    steps = len(generative.grid(generative.denoiser.scheduler)) - 1
    shown = min(ANIMATED, n, config.batch_size)
    chosen = frames_of(steps, flat(torch.empty(shown, *spec.shape, device="meta")).numel())
    trajectory = Trajectory(shown, generative.codec)

    def keep(step: int, x: Tensor, mean: Tensor) -> None:
        if step in chosen:
            trajectory(step, x, mean)

    with progress() as bar:
        task = bar.add_task("sampling", total=n)
        images = sample(
            generative,
            spec.shape,
            n,
            of_label(labels),
            config.seed,
            config.batch_size,
            on_step=keep,
            on_batch=lambda done: bar.update(task, completed=done),
        )
    note = None if datamodule else f"The real images are left out: {reason}."
    factor = reduction(2 * flat(images).numel(), GALLERY)
    rows = rows_of(images, labels if of_each else None, config.n, factor, run, datamodule)
    return Drawn(
        rows,
        animation(trajectory.strip(len(chosen)), names_of(generative, chosen, steps), moments(shown, chosen, steps)),
        caption(run, n, config.seed, len(rows), factor),
        note,
    )


def rows_of(images: Tensor, labels: Tensor | None, n: int, factor: int, run: Run, datamodule: Any) -> list[Row]:
    """A row for each class where there are labels, else one of all; real images are spread over the training split."""
    spec = run.spec
    train = datamodule.split("train") if datamodule else None
    side = math.ceil(spec.shape[-1] / factor)
    if labels is None:
        columns = columns_of(len(images), run.model.classes(spec))
        real = train.take(evenly_spaced(len(train), len(images))).eight_bit().images if train else None
        return [row(None, images, real, columns, factor)]
    columns = min(n, max(4, 400 // (3 * (side + 2))))
    rows = []
    for k in range(spec.classes):
        real = None
        if train:
            hot = train.labels == k if train.labels.ndim == 1 else train.labels[:, k] == 1
            members = hot.nonzero().flatten()
            shown = members[evenly_spaced(len(members), n)]
            real = train.take(shown).eight_bit().images if len(members) else None
        name = spec.names[k]
        rows.append(row(name, images[labels == k], real, columns, factor))
    return rows


def row(name: str | None, generated: Tensor, real: Tensor | None, columns: int, factor: int) -> Row:
    of = f" of class {name}" if name else ""
    pictures = [
        None if images is None else grid(reduced(images, factor), columns, f"{len(images)} {kind} images{of}")
        for kind, images in (("generated", generated), ("real training", real))
    ]
    return Row(name, *pictures)


def names_of(generative: GenerativeModel, chosen: list[int], steps: int) -> list[str]:
    """What each moment is called: the step, and the noise that is left after it."""
    scheduler = generative.denoiser.scheduler
    left = scheduler.sigma(generative.grid(scheduler)[1:])
    return [f"step {i + 1} of {steps}, noise \N{GREEK SMALL LETTER SIGMA} = {float(left[i]):.3g}" for i in chosen]


def moments(shown: int, chosen: list[int], steps: int) -> str:
    which = "at every step" if len(chosen) == steps else f"at {len(chosen)} of its {steps} steps"
    return (
        f"The first {shown} samples {which} of the sampler. Strong noise is brought to unit variance, so that it "
        "can be seen."
    )


def caption(run: Run, n: int, seed: int, rows: int, factor: int) -> str:
    """How the samples were made, in sentences."""
    sampler, guidance = run.config.sampler._target_.rsplit(".", 1)[-1], run.config.guidance
    said = f"{n} samples{' of all classes' if rows > 1 else ''}, none of them chosen by eye: seed {seed}, "
    said += f"sampler {sampler}, {run.config.grid.steps} steps, "
    said += f"guidance {guidance.scale:g}." if guidance else "no guidance."
    if run.ema is not None:
        said += f" Their weights are averaged over a length of {run.ema:g} of the training."
    if len(run.spec.shape) == 4:
        said += " Of each volume the middle slice is shown."
    if factor > 1:
        said += f" The images are shown at 1/{factor} of their size."
    return said
