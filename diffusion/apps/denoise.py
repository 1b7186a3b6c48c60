"""python -m diffusion denoise: take Gaussian noise off images, and measure how near to the originals that comes."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from diffusion.apps.noisy import Noisy, given_images
from diffusion.apps.output import best_device, emptied, entry, output_folder, progress, write_cases
from diffusion.apps.subject import data_of
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.metrics import interval, left_out, reconstruction_metrics
from diffusion.random import seed_of
from diffusion.runs import Run
from diffusion.tasks.classical import DENOISERS, settings_of, tuned
from diffusion.tasks.denoise import (
    candidate_levels,
    denoised,
    estimated_levels,
    expected_residuals,
    level_time,
    noise_of,
    residuals,
)
from diffusion.tasks.denoise_figure import TITLES, Row, save_figures, save_rows
from diffusion.tasks.pictures import flat
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_count, check_positive, to_uint8

log = logging.getLogger("diffusion")

LEVELS = (0.1, 0.25, 0.5)
SHOWN = 6
DEFINITIONS = {
    "noise": "Gaussian, its standard deviation where images are in [-1, 1]; not clipped, not rounded",
    "psnr": "of images clipped and rounded to 8 bits, in dB; mean over images, with a 95% bootstrap interval over them",
    "mean": "E[x0 | y], one evaluation of the network",
    "sample": "one draw from p(x0 | y); its squared error is twice that of the mean where the model is right",
    "average": "the mean of all draws",
    "spread": "root mean square of the draws' standard deviation, on [-1, 1]: the error, where the model is right",
    "error": "root mean square of mean - x0, on [-1, 1]",
    "gain": "psnr of the mean minus that of the better baseline of this level, paired by image",
}


def main(config: DictConfig) -> None:
    """Write metrics.json, cases.csv, denoised.npz, denoise.png and psnr.png into the output folder."""
    check(config)
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema)
    # A guided model answers with no mean of any posterior.
    run = run.under(OmegaConf.create({**config, "guidance": None}))
    run.position()
    device = best_device(config.device)
    generative = generative_of(run, device)
    levels, draws = asked(run, config), draws_of(run, config, generative)
    for level in levels:
        level_time(generative.denoiser.scheduler, level)
    given = given_images(Path(config.images), run.spec) if config.images else None
    told = run.model.told(run.spec) is not None
    if given and told and given.labels is None and run.model.label_dropout == 0:
        raise UserError(f"images={config.images} has no labels, without which this run has never been: give them")
    datamodule = data_of(run, run.config, "the figures are of other images")
    out = output_folder(str(config.out or run.directory / "denoise"), config.overwrite)

    start = time.perf_counter()
    tuning = datamodule.split("val")
    tuning = tuning.take(evenly_spaced(len(tuning), config.tuned)).eight_bit()
    if given is None:
        split = datamodule.split(config.split)
        chosen = evenly_spaced(len(split), config.n or len(split))
        split = split.take(chosen).eight_bit()
        noisy = with_noise(split.images, split.labels, chosen, levels, config.seed)
    else:
        noisy = given.take(evenly_spaced(len(given), config.n or len(given)))
        cond = {"label": tuning.labels} if told else None
        level = torch.full_like(noisy.level, levels[0]) if levels else estimate(generative, noisy, tuning, cond, config)
        noisy = replace(noisy, level=level)
    found, spread = results(generative, noisy, draws, told, config)
    settings = baselines(noisy, tuning.images, found, config, by_level=given is None) if config.baselines else {}

    cases = measured(noisy, found)
    groups = {f"{s:g}": noisy.level == s for s in levels} if given is None else {"given": noisy.level > 0}
    figures = {name: figures_of(which, cases, found, settings, config.seed) for name, which in groups.items()}
    if noisy.clean is not None:
        for name, which in groups.items():
            figures[name] |= errors_of(
                noisy.clean[which], found["mean"][which], None if spread is None else spread[which]
            )
    metrics = {
        "n": len(noisy) if given else len(noisy) // len(levels),
        "images": str(config.images) if given else config.split,
        "noise": list(levels) or {"estimated": estimates_of(noisy.level)},
        "levels": figures,
        "baselines": settings and {"tuned_on": f"{len(tuning)} validation images, by mean PSNR", **settings},
        "definitions": DEFINITIONS,
        "left_out": {} if noisy.clean is None else {k: v for k, v in left_out(run.spec.shape).items() if k == "ssim"},
        "samples": draws,
        "sampler": run.config.sampler._target_.rsplit(".", 1)[-1],
        "grid": OmegaConf.to_container(run.config.grid, resolve=True),
        "step": run.position(),
        "ema": run.average,
        "weights": run.fingerprint(),
        "data": {"source": datamodule.source, "fingerprint": datamodule.fingerprint()},
        "seed": config.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_cases(out / "cases.csv", noisy.place, noisy.labels, {"noise": noisy.level, **cases})
    save_images(out, noisy, found, spread)
    save_rows(rows_of(noisy, found, spread, cases), out / "denoise.png")
    if noisy.clean is not None:
        save_figures(
            {name: {m: f for m, f in each.items() if m in TITLES} for name, each in figures.items()}, out / "psnr.png"
        )
    report(figures)
    log.info("%s", out / "denoise.png")


def check(config: DictConfig) -> None:
    """Raises UserError for a value that means nothing."""
    check_count(config.n)
    check_positive(batch_size=config.batch_size, tuned=config.tuned)
    if config.samples < 0:
        raise UserError(f"samples={config.samples}: give the number of draws, 0 for none")
    if config.split not in ("train", "val", "test"):
        raise UserError(f"split={config.split}: give train, val or test")
    numbers = config.noise if isinstance(config.noise, ListConfig) else [] if config.noise is None else [config.noise]
    right = all(type(s) in (int, float) and 0 < s <= 10 for s in numbers) and len(set(numbers)) == len(numbers)
    if not right or (config.noise is not None and not numbers):
        raise UserError(
            f"noise={config.noise}: give a standard deviation, or several, above 0 (images are in [-1, 1]: 0.25)"
        )
    if config.images is not None and len(numbers) > 1:
        raise UserError(f"noise={config.noise}: images={config.images} has one level; give it, or null to estimate it")


def generative_of(run: Run, device: torch.device) -> GenerativeModel:
    """The run's model, unguided. Raises UserError for one that denoises no pixels, or is told more than a class."""
    if run.config.data.codec_fingerprint is not None:
        raise UserError(
            "denoise takes noise off pixels, and this run lives in latents: a codec makes other noise of pixel noise, "
            "which its denoiser has never seen; give the run of a pixel_ddpm"
        )
    if run.config.get("control"):
        raise UserError(
            "denoise knows the noisy image alone, and this run is told a control beside it: give another run"
        )
    generative = run.model.denoising(run.spec, run.weights)
    generative.denoiser.requires_grad_(False).to(device)
    return generative


def asked(run: Run, config: DictConfig) -> list[float]:
    """The levels: those asked for, else the run's own, else three; none where they are to be estimated."""
    own = run.model.level
    if config.noise is None:
        if config.images is not None and own is None:
            return []
        return [own] if own is not None else list(LEVELS)
    levels = [float(s) for s in (config.noise if isinstance(config.noise, ListConfig) else [config.noise])]
    if own is not None and any(abs(s / own - 1) > 1e-6 for s in levels):
        log.warning("the network of this run has learnt noise of %g alone: other levels are taken off badly", own)
    return levels


def draws_of(run: Run, config: DictConfig, generative: GenerativeModel) -> int:
    """The draws to make of each image. Raises UserError where the sampler would make the same one each time."""
    if config.samples and run.model.level is not None:
        log.info("this run knows one noise level, and cannot go on below it: no samples are drawn")
        return 0
    if config.samples:
        try:
            generative.rehearse(rng=None)
        except ValueError:  # a stochastic sampler cannot do without
            return config.samples
        name = config.sampler._target_.rsplit(".", 1)[-1]
        raise UserError(
            f"sampler={name} adds no noise, so that all draws would be one image: use dpmpp_2m_sde, ddpm, or samples=0"
        )
    return 0


def with_noise(clean: Tensor, labels: Tensor | None, places: Tensor, levels: list[float], seed: int) -> Noisy:
    """Images uint8 (N, C, *S) at each level in turn, with the same noise at all of them."""
    x0, noise = clean.float() / 127.5 - 1, noise_of(clean.shape[1:], seed, places.tolist())
    count = len(levels)
    return Noisy(
        torch.cat([x0 + level * noise for level in levels]),
        torch.tensor(levels, dtype=torch.float64).repeat_interleave(len(clean)),
        places.repeat(count),
        clean.repeat(count, *[1] * (clean.ndim - 1)),
        None if labels is None else labels.repeat(count, *[1] * (labels.ndim - 1)),
    )


def estimate(generative: GenerativeModel, noisy: Noisy, tuning: Any, cond: dict | None, config: DictConfig) -> Tensor:
    """The level of each image, (N,); see `estimated_levels`."""
    clean, levels = tuning.images.float() / 127.5 - 1, candidate_levels(generative.denoiser.scheduler)
    with progress() as bar:
        task = bar.add_task("noise level", total=2)
        size = config.batch_size
        expected = expected_residuals(
            generative, clean, levels, cond, seed=seed_of(config.seed, "level"), batch_size=size
        )
        bar.advance(task)
        told = {"label": noisy.labels} if cond and noisy.labels is not None else None
        level = estimated_levels(residuals(generative, noisy.images, levels, told, size), expected, levels)
        bar.advance(task)
    return level


def results(
    generative: GenerativeModel, noisy: Noisy, draws: int, told: bool, config: DictConfig
) -> tuple[dict[str, Tensor], Tensor | None]:
    """By method images uint8 (N, C, *S), and the spread of the draws, float32 (N, *S): root mean square of channels."""
    found: dict[str, Tensor] = {"noisy": to_uint8(noisy.images)}
    spread = torch.zeros(len(noisy), *noisy.images.shape[2:]) if draws > 1 else None
    with progress() as bar:
        task = bar.add_task("denoising", total=len(noisy) * (1 + draws))
        for rows in batches(noisy.level, config.batch_size):
            cond = {"label": noisy.labels[rows]} if told and noisy.labels is not None else None
            part = denoised(
                generative,
                noisy.images[rows],
                noisy.level[rows[0]].item(),
                cond,
                seeds=[seed_of(config.seed, place) for place in noisy.place[rows].tolist()],
                draws=draws,
                on_draw=lambda rows=rows: bar.advance(task, len(rows)),
            )
            bar.advance(task, len(rows))
            for name in ("mean", "sample", "average"):
                if (images := getattr(part, name)) is not None:
                    found.setdefault(name, torch.empty_like(found["noisy"]))[rows] = to_uint8(images).cpu()
            if spread is not None:
                spread[rows] = part.spread.square().mean(1).sqrt().cpu()
    return found, spread


def batches(level: Tensor, size: int) -> list[Tensor]:
    """The rows, in batches of one level each."""
    return [rows for s in level.unique() for rows in (level == s).nonzero().flatten().split(size)]


def baselines(
    noisy: Noisy, clean: Tensor, found: dict[str, Tensor], config: DictConfig, by_level: bool
) -> dict[str, dict[str, Any]]:
    """Adds to `found` what the classical denoisers make of the images; their settings, by method and level.

    by_level: they are tuned for each level; otherwise for the median of all.
    """
    x0, noise = clean.float() / 127.5 - 1, noise_of(clean.shape[1:], seed_of(config.seed, "tuning"), range(len(clean)))
    levels = noisy.level.unique().tolist() if by_level else [noisy.level.median().item()]
    settings: dict[str, dict[str, Any]] = {}
    tries = sum(len(settings_of(name, clean.ndim)) for name in DENOISERS)
    with progress() as bar:
        task = bar.add_task("baselines", total=len(levels) * tries + len(DENOISERS) * len(noisy))

        def advance() -> None:
            bar.advance(task)

        for name, denoise in DENOISERS.items():
            found[name], settings[name] = torch.empty_like(found["noisy"]), {}
            for s in levels:
                best, _ = tuned(name, x0, x0 + s * noise, s, on_try=advance)
                settings[name][f"{s:g}"] = dict(best)
                for row in ((noisy.level == s) if by_level else (noisy.level > 0)).nonzero().flatten().split(1):
                    level = noisy.level[row].item()
                    found[name][row] = to_uint8(denoise(noisy.images[row], level, **best).clamp(-1, 1))
                    advance()
    return settings


def measured(noisy: Noisy, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """PSNR and SSIM of each image by each method, (N,) float64; nothing where there are no originals."""
    if noisy.clean is None:
        return {}
    values = {name: reconstruction_metrics(noisy.clean, images) for name, images in found.items()}
    return {f"{key}_{name}": each[key] for name, each in values.items() for key in ("psnr", "ssim") if key in each}


def figures_of(
    which: Tensor, cases: dict[str, Tensor], found: dict[str, Tensor], settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Of the rows `which` the mean of each figure of each method, and the gain over the better baseline."""
    figures: dict[str, Any] = {}
    for name in found:
        for key in ("psnr", "ssim"):
            if (values := cases.get(f"{key}_{name}")) is not None:
                figures.setdefault(name, {})[key] = mean_of(values[which], seed)
    rivals = [name for name in settings if name in figures]
    if rivals:
        best = max(rivals, key=lambda name: figures[name]["psnr"]["value"])
        gain = cases["psnr_mean"][which] - cases[f"psnr_{best}"][which]
        figures["gain"] = {"over": best, "psnr": mean_of(gain, seed)}
    return figures


def mean_of(values: Tensor, seed: int) -> dict[str, float | int]:
    """The mean with its interval; an image that came back exactly, of infinite PSNR, is left out."""
    finite = values[values.isfinite()]
    if not len(finite):
        return {"value": None, "low": None, "high": None, "n": 0}
    return entry(interval(finite.numpy(), seed=seed), len(finite))


def errors_of(clean: Tensor, mean: Tensor, spread: Tensor | None) -> dict[str, float]:
    """The root mean square of the mean's error, and of the draws' spread."""
    error = ((mean.float() - clean.float()) / 127.5).square().mean().sqrt().item()
    found = {"error": error} | ({} if spread is None else {"spread": spread.square().mean().sqrt().item()})
    return {"calibration": found}


def estimates_of(level: Tensor) -> dict[str, float]:
    return {"mean": level.mean().item(), "lowest": level.min().item(), "highest": level.max().item()}


def save_images(out: Path, noisy: Noisy, found: dict[str, Tensor], spread: Tensor | None) -> None:
    """denoised.npz, row by row as in cases.csv; of PNGs also PNGs."""
    arrays = {"images": found["mean"].movedim(1, -1).numpy(), "noise": noisy.level.numpy()}
    if "sample" in found:
        arrays["samples"] = found["sample"].movedim(1, -1).numpy()
    if spread is not None:
        arrays["spread"] = spread.numpy().astype(np.float16)
    np.savez_compressed(out / "denoised.npz", **arrays)
    if noisy.names:
        from PIL import Image

        emptied(out / "images")
        for name, image in zip(noisy.names, flat(found["mean"]), strict=True):
            Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()).save(out / "images" / name)


def rows_of(noisy: Noisy, found: dict[str, Tensor], spread: Tensor | None, cases: dict[str, Tensor]) -> list[Row]:
    """The rows of the figure: as many of each level, evenly spaced."""
    levels = noisy.level.unique().tolist() if len(noisy.level.unique()) <= SHOWN // 2 else [None]
    rows = []
    for s in levels:
        those = torch.arange(len(noisy)) if s is None else (noisy.level == s).nonzero().flatten()
        for row in those[evenly_spaced(len(those), SHOWN // len(levels))].tolist():
            pictures = {name: images[row] for name, images in found.items() if name != "average"}
            pictures |= {} if noisy.clean is None else {"original": noisy.clean[row]}
            captions = {
                name: f"{float(cases[f'psnr_{name}'][row]):.1f} dB" for name in found if f"psnr_{name}" in cases
            }
            rows.append(Row(noisy.level[row].item(), pictures, captions, None if spread is None else spread[row]))
    return rows


def report(figures: dict[str, dict[str, Any]]) -> None:
    """The figures, one method and level a line."""
    for level, each in figures.items():
        for name, title in TITLES.items():
            if name in each and "psnr" in each[name]:
                f, similar = each[name]["psnr"], each[name].get("ssim")
                said = f"  SSIM {similar['value']:.3f}" if similar else ""
                log.info(
                    "noise %-5s %-16s %.2f dB (%.2f to %.2f)%s", level, title, f["value"], f["low"], f["high"], said
                )
        if "gain" in each:
            f = each["gain"]["psnr"]
            over = TITLES[each["gain"]["over"]]
            log.info("noise %-5s %+.2f dB (%+.2f to %+.2f) over %s", level, f["value"], f["low"], f["high"], over)
