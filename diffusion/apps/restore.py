"""python -m diffusion restore: images from few, blurred or noisy measurements, y = A x + noise."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from diffusion.apps.drawn import choice
from diffusion.apps.originals import Originals, advancing, batches_in_all, conditioned, originals_of, save_and_tell
from diffusion.apps.output import output_folder, progress, summary
from diffusion.errors import UserError
from diffusion.metrics import left_out, reconstruction_metrics
from diffusion.operators import Operator
from diffusion.random import SampleNoise
from diffusion.tasks.edit_figure import save_columns
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.restore import assumed_noise, residual, restore
from diffusion.tasks.sample import check_positive, to_uint8

log = logging.getLogger("diffusion")

CALIBRATION = 64
"""Validation images on which it is measured what the codec loses."""
DEFINITIONS = {
    "noise": "standard deviation of what is measured, where images are in [-1, 1]",
    "assumed_noise": "root of the sum of squares: noise, rounding to 8 bits, what the codec loses of A x (validation)",
    "draw": "one draw from the posterior; figures are means over an image's draws, then over images",
    "mean": "the mean of an image's draws",
    "residual": "root mean square of A x - y, where images are in [-1, 1]: about the noise, where x explains y",
    "psnr": "of images clipped and rounded to 8 bits, in dB; mean over images, with a 95% bootstrap interval",
}


def main(config: DictConfig) -> None:
    """Write samples.npz, metrics.json, cases.csv and restore.png into the output folder."""
    check_positive(samples=config.samples, shown=config.shown, iterations=config.iterations)
    if isinstance(config.noise, bool) or not isinstance(config.noise, (int, float)) or not 0 <= config.noise <= 10:
        raise UserError(f"noise={config.noise}: give a standard deviation from 0 on (images are in [-1, 1]: 0.02)")
    operator: Operator = instantiate(config.operator)
    originals = originals_of(config)
    originals.run.model.check_posterior_mean()
    operator.check(originals.run.spec.shape)
    told = originals.told(config.label)
    out = output_folder(str(config.out or originals.run.directory / "restore"), config.overwrite)

    start = time.perf_counter()
    y = torch.cat([measure(operator, originals, part, config) for part in originals.batches(config.batch_size)])
    assumed = assumed_of(operator, originals, config)
    steps = len(originals.generative.grid(originals.generative.denoiser.scheduler)) - 1
    with progress() as bar:
        batches = config.samples * batches_in_all(originals, config.batch_size)
        task = bar.add_task("restoring", total=steps * batches)
        draws = torch.stack([
            torch.cat([
                restore(
                    originals.generative,
                    operator,
                    y[part],
                    assumed,
                    originals.run.spec.shape,
                    conditioned(told, part),
                    seeds=originals.seeds(part, config.seed, "restore", draw),
                    iterations=config.iterations,
                    on_step=advancing(bar, task),
                ).cpu()
                for part in originals.batches(config.batch_size)
            ])
            for draw in range(config.samples)
        ])  # fmt: skip
    shape = originals.run.spec.shape
    others = {operator.seen_as: operator.picture(y, shape), **operator.interpolated(y, shape)}
    if config.samples > 1:
        others["mean"] = draws.mean(0)
    cases = measured(operator, originals.images, y, draws, others)
    metrics = {
        "n": len(originals),
        "samples": config.samples,
        "operator": choice(config.operator),
        "measured": list(y.shape[1:]),
        "noise": config.noise,
        "assumed_noise": assumed,
        "iterations": config.iterations,
        **{name: {key: summary(values, config.seed) for key, values in each.items()} for name, each in cases.items()},
        "definitions": DEFINITIONS,
        "left_out": {key: reason for key, reason in left_out(shape).items() if key == "ssim"},
        **originals.receipt(config),
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    save_draws(out / "samples.npz", draws, y, told, originals.places)
    save_figure(originals, draws, others, cases, config.shown, out / "restore.png")
    save_and_tell(out, originals, cases)
    log.info("%s", out / "restore.png")


def measure(operator: Operator, originals: Originals, part: slice, config: DictConfig) -> Tensor:
    """y = A x + noise of the images of a part, on the CPU; the noise of an image depends on the seed and its place."""
    seen = operator(originals.pixels(part).cpu())
    noise = SampleNoise(originals.seeds(part, config.seed, "measurement"))
    return seen + config.noise * noise(seen.shape[1:])


def assumed_of(operator: Operator, originals: Originals, config: DictConfig) -> float:
    """The noise to reckon with; what a codec loses is measured on validation images."""
    split = originals.datamodule.split("val")
    split = split.take(evenly_spaced(len(split), CALIBRATION)).eight_bit()
    images = split.images.float() / 127.5 - 1
    return assumed_noise(originals.generative, operator, images, config.noise, config.batch_size)


def measured(
    operator: Operator, images: Tensor, y: Tensor, draws: Tensor, others: dict[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Figures of each image, (N,), by method; draws (K, N, C, *S) are judged one by one, and averaged."""

    def figures(found: Tensor) -> dict[str, Tensor]:
        judged = reconstruction_metrics(images, to_uint8(found))
        kept = {key: judged[key] for key in ("mse", "psnr", "ssim", "sharpness") if key in judged}
        return kept | {"residual": residual(operator, found, y)}

    several = [figures(draw) for draw in draws]
    cases = {"draw": {key: torch.stack([each[key] for each in several]).mean(0) for key in several[0]}}
    return cases | {name: figures(found) for name, found in others.items()}


def save_draws(path: Path, draws: Tensor, y: Tensor, told: Tensor | None, places: Tensor) -> None:
    """All draws of the first image, then of the next: images, places, and labels if told; and what was measured."""
    count = len(draws)
    arrays = {
        "images": to_uint8(draws.transpose(0, 1).flatten(0, 1)).movedim(1, -1).numpy(),
        "index": places.repeat_interleave(count).numpy(),
        "measured": y.numpy(),
    }
    np.savez_compressed(
        path, **arrays, **({} if told is None else {"labels": told.repeat_interleave(count, 0).numpy()})
    )


def save_figure(
    originals: Originals, draws: Tensor, others: dict[str, Tensor], cases: dict, shown: int, path: Path
) -> None:
    """What was measured, simple reconstructions, draws, their mean, and the original, of images from first to last."""
    rows = evenly_spaced(len(originals), shown)
    columns = {name: to_uint8(found[rows]) for name, found in others.items() if name != "mean"}
    columns |= {f"draw {k + 1}": to_uint8(draw[rows]) for k, draw in enumerate(draws[:3])}
    columns |= {name: to_uint8(others[name][rows]) for name in ("mean",) if name in others}
    columns["original"] = originals.images[rows]
    captions = {name: [f"{value:.1f} dB" for value in cases[name]["psnr"][rows].tolist()] for name in others}
    save_columns(columns, path, captions)
