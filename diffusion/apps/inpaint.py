"""python -m diffusion inpaint: complete images of which a part is unknown, several times each."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from diffusion.apps.originals import Originals, advancing, batches_in_all, conditioned, originals_of, save_and_tell
from diffusion.apps.output import output_folder, progress, summary
from diffusion.errors import UserError
from diffusion.metrics import left_out
from diffusion.metrics.hole import hole_metrics, spread
from diffusion.operators import SHARES, unknown
from diffusion.random import generator
from diffusion.samplers.resampled import Resampled
from diffusion.tasks.edit_figure import save_columns, veiled
from diffusion.tasks.inpaint import biharmonic, inpaint
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_positive, to_uint8

log = logging.getLogger("diffusion")

DEFINITIONS = {
    "completions": "means over the completions of an image, in the unknown part alone, then over images",
    "mean": "the mean of an image's completions, rounded to 8 bits; what a squared error asks for",
    "biharmonic": "scikit-image's inpaint_biharmonic, from the known pixels of the image alone",
    "psnr": "-10 log10 of the mean squared error over channels and unknown pixels on the scale [0, 1], in dB",
    "mae": "mean absolute error over channels and unknown pixels, on the scale [0, 1]",
    "ssim": "mean of the map of structural similarity over the unknown pixels",
    "spread": "root mean square over the unknown pixels of the completions' standard deviation, on the scale [0, 1]",
}


def main(config: DictConfig) -> None:
    """Write samples.npz, metrics.json, cases.csv and inpaint.png into the output folder."""
    check_positive(samples=config.samples, shown=config.shown)
    resampled = Resampled(None, config.resample, config.stride)
    originals = originals_of(config)
    if config.resample > 1 and config.sampler.get("churn"):
        raise UserError(
            "sampler.churn is a share of the whole grid, which resample=2 and more walk in parts: set one to 1"
        )
    hidden = masks_of(config, originals)
    told = originals.told(config.label)
    out = output_folder(str(config.out or originals.run.directory / "inpaint"), config.overwrite)

    start = time.perf_counter()
    grid = originals.generative.grid(originals.generative.denoiser.scheduler)
    batches = config.samples * batches_in_all(originals, config.batch_size)
    with progress() as bar:
        task = bar.add_task("inpainting", total=resampled.steps(grid) * batches)
        completions = torch.stack([
            torch.cat([
                completed(originals, hidden, told, part, draw, config, advancing(bar, task))
                for part in originals.batches(config.batch_size)
            ])
            for draw in range(config.samples)
        ])  # fmt: skip
    found = {"completions": completions}
    if config.samples > 1:
        found["mean"] = composed(originals.images, hidden, completions.float().mean(0).round().to(torch.uint8))
    if config.classical and originals.images.ndim == 4:
        found["biharmonic"] = biharmonic(originals.images, hidden)
    cases = measured(originals.images, hidden, found)
    metrics = {
        "n": len(originals),
        "samples": config.samples,
        "mask": config.mask,
        "unknown": round(float(hidden.double().mean()), 6),
        "resample": config.resample,
        "stride": config.stride,
        **{name: {key: summary(values, config.seed) for key, values in each.items()} for name, each in cases.items()},
        "definitions": DEFINITIONS,
        "left_out": {key: reason for key, reason in left_out(originals.run.spec.shape).items() if key == "ssim"},
        **originals.receipt(config),
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    save_completions(out / "samples.npz", completions, hidden, told, originals.places)
    save_figure(originals, hidden, found, cases, config.shown, out / "inpaint.png")
    save_and_tell(out, originals, cases)
    log.info("%s", out / "inpaint.png")


def masks_of(config: DictConfig, originals: Originals) -> Tensor:
    """What is unknown of each image, bool (N, 1, *S). Raises UserError for a mask that does not fit."""
    size, n = originals.images.shape[2:], len(originals)
    if config.mask in SHARES:
        masks = [
            unknown(config.mask, size, config.share, generator(config.seed, "mask", place))
            for place in originals.places.tolist()
        ]
        return torch.stack(masks)[:, None]
    if config.share is not None:
        raise UserError(f"share={config.share}: mask={config.mask} has a share of its own; leave share out")
    return read_mask(Path(config.mask), size).expand(n, 1, *size)


def read_mask(path: Path, size: torch.Size) -> Tensor:
    """Which pixels a file says are unknown, bool of `size`. Raises UserError for one that is no such mask."""
    if not path.is_file():
        raise UserError(f"mask={path}: give {', '.join(SHARES)}, or a file, which this is not")
    try:
        if path.suffix == ".npy":
            values = np.load(path)
            if not np.isin(values, (0, 1, 255)).all():
                raise ValueError("it holds other values than 0, and 1 or 255 where a pixel is unknown")
            found = torch.from_numpy(values > 0)
        else:
            from PIL import Image

            found = torch.from_numpy(np.asarray(Image.open(path).convert("L")) > 127)
    except Exception as error:  # a file of another kind can make its readers raise anything
        raise UserError(f"mask={path} cannot be read as a picture or an npy array ({error})") from error
    wanted = " x ".join(map(str, size))
    if found.shape not in (size, size[-2:]):
        raise UserError(f"mask={path} is of {' x '.join(map(str, found.shape))} pixels, but the images are of {wanted}")
    if not found.any() or found.all():
        raise UserError(f"mask={path} hides {'all' if found.all() else 'nothing'}: make white what is unknown")
    return found.expand(size)


def completed(
    originals: Originals,
    hidden: Tensor,
    told: Tensor | None,
    part: slice,
    draw: int,
    config: DictConfig,
    on_step: object,
) -> Tensor:
    """Completion number `draw` of the images of a part, uint8, with their own pixels where those are known."""
    found = inpaint(
        originals.generative,
        originals.pixels(part),
        hidden[part].to(originals.device),
        conditioned(told, part),
        seeds=originals.seeds(part, config.seed, "inpaint", draw),
        times=config.resample,
        stride=config.stride,
        on_step=on_step,
    )
    return composed(originals.images[part], hidden[part], to_uint8(found).cpu())


def composed(images: Tensor, hidden: Tensor, completions: Tensor) -> Tensor:
    """The completions where pixels are hidden, and the images to the bit where they are not."""
    return torch.where(hidden, completions, images)


def measured(images: Tensor, hidden: Tensor, found: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Figures of each image, (N,), by method; completions (K, N, ...) are judged one by one, and averaged."""
    several = [hole_metrics(images, one, hidden) for one in found["completions"]]
    cases = {"completions": {key: torch.stack([each[key] for each in several]).mean(0) for key in several[0]}}
    if len(several) > 1:
        cases["completions"]["spread"] = spread(found["completions"], hidden)
    return cases | {name: hole_metrics(images, found[name], hidden) for name in found if name != "completions"}


def save_completions(path: Path, completions: Tensor, hidden: Tensor, told: Tensor | None, places: Tensor) -> None:
    """All completions of the first image, then of the next: images, what was hidden, places, and labels if told."""
    draws = len(completions)
    arrays = {
        "images": completions.transpose(0, 1).flatten(0, 1).movedim(1, -1).numpy(),
        "unknown": hidden[:, 0].repeat_interleave(draws, 0).numpy(),
        "index": places.repeat_interleave(draws).numpy(),
    }
    np.savez_compressed(
        path, **arrays, **({} if told is None else {"labels": told.repeat_interleave(draws, 0).numpy()})
    )


def save_figure(
    originals: Originals, hidden: Tensor, found: dict[str, Tensor], cases: dict, shown: int, path: Path
) -> None:
    """Original, masked, completions, and the classical one, of images from the first to the last."""
    rows = evenly_spaced(len(originals), shown)
    columns = {"original": originals.images[rows], "known": veiled(originals.images[rows], hidden[rows])}
    columns |= {f"completion {k + 1}": each[rows] for k, each in enumerate(found["completions"][:5])}
    columns |= {name: found[name][rows] for name in ("mean", "biharmonic") if name in found}
    captions = {
        name: [f"{value:.1f} dB" for value in cases[name]["psnr"][rows].tolist()]
        for name in ("mean", "biharmonic")
        if name in found
    }
    save_columns(columns, path, captions)
