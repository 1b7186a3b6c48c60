"""python -m diffusion translate: redraw images at several strengths, towards another class where there are classes."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from diffusion.apps.originals import Originals, advancing, batches_in_all, conditioned, originals_of, plain
from diffusion.apps.output import output_folder, progress, summary, write_cases
from diffusion.errors import UserError
from diffusion.extractors import domain_classifier, predictions
from diffusion.generative import time_of
from diffusion.metrics import left_out, reconstruction_metrics
from diffusion.tasks.edit_figure import save_columns
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_positive, to_uint8

log = logging.getLogger("diffusion")

STRENGTHS = [0.3, 0.5, 0.7, 0.9]
KEPT = ("mse", "psnr", "ssim", "sharpness")
DEFINITIONS = {
    "strength": "sigma / sqrt(alpha^2 + sigma^2) of the noise that an image is redrawn from",
    "psnr": "to the original, in dB: how far the image has moved; mean over images, with a 95% bootstrap interval",
    "ssim": "structural similarity to the original",
    "reached": "share of images in which a classifier of the real data sees the class that was asked for",
}


def main(config: DictConfig) -> None:
    """Write samples.npz, metrics.json, cases.csv and translate.png into the output folder."""
    check_positive(shown=config.shown)
    strengths = strengths_of(plain(config.strength))
    originals = originals_of(config)
    scheduler = originals.generative.denoiser.scheduler
    for strength in strengths:
        time_of(scheduler, strength)
    told = asked(originals, plain(config.label))
    out = output_folder(str(config.out or originals.run.directory / "translate"), config.overwrite)

    start = time.perf_counter()
    grids = [originals.generative.below(time_of(scheduler, strength)) for strength in strengths]
    with progress() as bar:
        total = sum(len(grid) - 1 for grid in grids) * batches_in_all(originals, config.batch_size)
        task = bar.add_task("translating", total=total)
        found = {
            strength: torch.cat([
                redrawn(originals, strength, told, part, config.seed, advancing(bar, task))
                for part in originals.batches(config.batch_size)
            ])
            for strength in strengths
        }  # fmt: skip
    cases = {strength: measured(originals.images, images) for strength, images in found.items()}
    judged = reached(originals, found, told, config)
    for strength, values in (judged or {}).items():
        cases[strength]["reached"] = values
    metrics = {
        "n": len(originals),
        "label": "none" if told is None else config.label if config.label is not None else "the next class",
        "strengths": {
            f"{strength:g}": {key: summary(values, config.seed) for key, values in each.items()}
            for strength, each in cases.items()
        },
        "definitions": DEFINITIONS,
        "left_out": {key: reason for key, reason in left_out(originals.run.spec.shape).items() if key == "ssim"}
        | ({} if judged else {"reached": "classifier=false, or there is no one class to be told"}),
        **originals.receipt(config),
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    columns = {f"{key}_{strength:g}": values for strength, each in cases.items() for key, values in each.items()}
    write_cases(out / "cases.csv", originals.places, originals.labels, columns)
    save_translations(out / "samples.npz", found, told, originals.places)
    save_figure(originals, found, told, cases, config.shown, out / "translate.png")
    for strength, each in cases.items():
        log.info("%8g  %s", strength, "  ".join(f"{key} {values.mean():.4g}" for key, values in each.items()))
    log.info("%s", out / "translate.png")


def strengths_of(strength: Any) -> list[float]:
    """The strengths asked for, rising. Raises UserError for none, or one that is given twice."""
    given = strength if isinstance(strength, list) else [strength] if strength is not None else STRENGTHS
    if not given or len(set(map(str, given))) < len(given):
        raise UserError(f"strength={strength}: give a number, or several different ones such as [0.3,0.5]")
    for one in given:
        if isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 < one <= 1:
            raise UserError(f"strength={one}: give a number above 0 (the image itself), up to 1 (noise alone)")
    return sorted(map(float, given))


def asked(originals: Originals, label: Any) -> Tensor | None:
    """The class that each image is to become; its own where several hold at once, or the model is told none."""
    own = originals.told(None)
    if label == "own" and own is not None:
        return own
    if label is not None or own is None or own.ndim == 2:
        return originals.told(label)
    return (own + 1) % originals.run.spec.classes


def redrawn(
    originals: Originals, strength: float, told: Tensor | None, part: slice, seed: int, on_step: object
) -> Tensor:
    """The images of a part redrawn, uint8; each from the same noise at every strength."""
    found = originals.generative.redraw(
        originals.pixels(part),
        strength,
        conditioned(told, part),
        seeds=originals.seeds(part, seed, "translate"),
        on_step=on_step,
    )
    return to_uint8(found).cpu()


def measured(images: Tensor, found: Tensor) -> dict[str, Tensor]:
    """How far each image has moved, (N,) by name."""
    judged = reconstruction_metrics(images, found)
    return {key: judged[key] for key in KEPT if key in judged}


def reached(
    originals: Originals, found: dict[float, Tensor], told: Tensor | None, config: DictConfig
) -> dict[float, Tensor] | None:
    """Whether a classifier sees in each image the class that was asked for, (N,) by strength."""
    if not config.classifier or told is None or told.ndim == 2:
        return None
    cache = Path(config.cache or originals.run.directory.resolve().parent.parent / ".cache")
    classifier = domain_classifier(originals.datamodule, cache, originals.device)
    seen = {strength: predictions(classifier, images, False, config.batch_size) for strength, images in found.items()}
    return {strength: (classes.cpu() == told).double() for strength, classes in seen.items()}


def save_translations(path: Path, found: dict[float, Tensor], told: Tensor | None, places: Tensor) -> None:
    """All strengths of the first image, then of the next: images, strengths, places, and labels if told."""
    count = len(found)
    arrays = {
        "images": torch.stack(list(found.values()), 1).flatten(0, 1).movedim(1, -1).numpy(),
        "strength": np.tile(np.array(list(found)), len(places)),
        "index": places.repeat_interleave(count).numpy(),
    }
    np.savez_compressed(
        path, **arrays, **({} if told is None else {"labels": told.repeat_interleave(count, 0).numpy()})
    )


def save_figure(
    originals: Originals, found: dict[float, Tensor], told: Tensor | None, cases: dict, shown: int, path: Path
) -> None:
    """Original, then every strength, of images from the first to the last."""
    rows, names = evenly_spaced(len(originals), shown), originals.run.spec.names
    columns = {"original": originals.images[rows]}
    columns |= {f"strength {strength:g}": images[rows] for strength, images in found.items()}
    captions = {
        f"strength {strength:g}": [f"{value:.1f} dB" for value in each["psnr"][rows].tolist()]
        for strength, each in cases.items()
    }
    if told is not None and told.ndim == 1 and originals.labels.ndim == 1:
        pairs = zip(originals.labels[rows].tolist(), told[rows].tolist(), strict=True)
        captions["original"] = [f"{names[own]} → {names[other]}" for own, other in pairs]
    save_columns(columns, path, captions)
