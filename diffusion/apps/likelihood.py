"""python -m diffusion likelihood: how likely a run finds real images, in bits per dimension."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion.apps.output import best_device, output_folder, progress, write_cases
from diffusion.apps.subject import data_of
from diffusion.denoiser import Denoiser
from diffusion.errors import UserError
from diffusion.random import generator, normal_block
from diffusion.runs import Run
from diffusion.tasks.likelihood import BoundTerms, flow_bits, variational_bound
from diffusion.tasks.likelihood_figure import save_likelihood
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_count, check_positive

log = logging.getLogger("diffusion")

FURTHEST = 30.0


def main(config: DictConfig) -> None:
    """Write metrics.json, cases.csv, curve.csv and likelihood.png into the output folder."""
    check(config)
    # A guided model draws from no density that is known.
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema)
    run = run.under(OmegaConf.create({**config, "guidance": None}))
    run.check()
    run.model.check_posterior_mean()
    if "levels" in config.grid:
        raise UserError("grid=optimised belongs to a sampler: a bound takes log_snr_fine, log_snr, karras, ...")
    if run.config.data.codec_fingerprint is not None:
        raise UserError("likelihood is that of pixels, and this run lives in latents: give the run of a pixel_ddpm")
    device = best_device(config.device)
    denoiser = run.generative(device).denoiser.requires_grad_(False)
    grid = instantiate(config.grid)(denoiser.scheduler)
    if len(grid) < 3:
        raise UserError(f"grid.steps={config.grid.steps}: a bound takes 2 steps or more")
    beyond = denoiser.scheduler.log_snr(grid[:-1])
    if (beyond[beyond.isfinite()].abs() > FURTHEST).any():
        raise UserError(f"the grid reaches a log-SNR beyond +-{FURTHEST:g}, where no bit is left to count: shorten it")
    datamodule = data_of(run, run.config, "the figures are of other images")
    out = output_folder(str(config.out or run.directory / "likelihood"), config.overwrite)
    split = datamodule.split(config.split)
    chosen = evenly_spaced(len(split), config.n or len(split))
    split = split.take(chosen).eight_bit()
    labels = split.labels if run.model.classes(run.spec) is not None else None

    start = time.perf_counter()
    terms, flow, evaluations = evaluate(denoiser, split.images, labels, grid, config, device)
    found = {"bound": terms.total, "prior": terms.prior, "steps": terms.steps.sum(1), "decoder": terms.decoder}
    found |= {} if flow is None else {"flow": flow}
    log_snr = denoiser.scheduler.log_snr(grid[:-2])
    curve = terms.steps.double().mean(0)
    metrics = {
        "n": len(split),
        "split": config.split,
        "unit": "bits per dimension of 8-bit images",
        **{name: summary(values) for name, values in found.items()},
        "evaluations": {"bound": len(grid) - 1, **({} if flow is None else {"flow": evaluations})},
        "grid": OmegaConf.to_container(config.grid, resolve=True),
        "variance": variance_of(config.variance, denoiser),
        "step": run.position(),
        "ema": run.average,
        "weights": run.fingerprint(),
        "data": {"source": datamodule.source, "fingerprint": datamodule.fingerprint()},
        "seed": config.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_cases(out / "cases.csv", chosen, split.labels, found)
    write_curve(out / "curve.csv", grid[:-2], log_snr, curve)
    save_likelihood(
        log_snr, curve, {name: found[name] for name in ("bound", "flow") if name in found}, out / "likelihood.png"
    )
    for name in found:
        mean, error = metrics[name].values()
        log.info("%10s  %.4f%s bits per dimension", name, mean, "" if error is None else f" ± {error:.4f}")
    log.info("%s", out / "likelihood.png")


def check(config: DictConfig) -> None:
    """Raises UserError for a value that means nothing."""
    check_count(config.n)
    check_positive(batch_size=config.batch_size)
    if config.split not in ("train", "val", "test"):
        raise UserError(f"split={config.split}: give train, val or test")
    if config.variance is not None and not (isinstance(config.variance, (int, float)) and 0 <= config.variance <= 1):
        raise UserError(f"variance={config.variance}: give a number from 0 (small) to 1 (large), or null (learned)")
    if not 0 < config.tolerance < 1:
        raise UserError(f"tolerance={config.tolerance}: give a number between 0 and 1")


def evaluate(
    denoiser: Denoiser, images: Tensor, labels: Tensor | None, grid: Tensor, config: DictConfig, device: torch.device
) -> tuple[BoundTerms, Tensor | None, int]:
    """The terms of the bound and the flow's bits of all images uint8 (N, C, *S), and the flow's evaluations."""
    steps, bounds, flows, evaluations = len(grid) - 1, [], [], 0
    with progress() as bar:
        bound_task = bar.add_task("bound", total=steps * math.ceil(len(images) / config.batch_size))
        flow_task = (
            bar.add_task("flow", total=100 * math.ceil(len(images) / config.batch_size)) if config.flow else None
        )
        for batch, first in enumerate(range(0, len(images), config.batch_size)):
            x0 = images[first : first + config.batch_size].to(device).float() / 127.5 - 1
            cond = None if labels is None else {"label": labels[first : first + len(x0)].to(device)}

            def noise(step: int, first: int = first, x0: Tensor = x0) -> Tensor:
                return normal_block((config.seed, "bound", step), first, len(x0), x0.shape[1:], device)

            found = variational_bound(
                denoiser,
                x0,
                grid,
                cond,
                noise=noise,
                variance=config.variance,
                on_step=lambda _: bar.advance(bound_task),
            )
            bounds.append(found)
            if flow_task is not None:
                offsets, probes = draws(config.seed, first, x0)
                bits, count = flow_bits(
                    denoiser,
                    x0,
                    cond,
                    offsets=offsets,
                    probes=probes,
                    tolerance=config.tolerance,
                    on_time=lambda share, batch=batch: bar.update(flow_task, completed=100 * (batch + share)),
                )
                flows.append(bits)
                evaluations = max(evaluations, count)
                bar.update(flow_task, completed=100 * (batch + 1))
    parts = zip(*((b.prior.cpu(), b.steps.cpu(), b.decoder.cpu()) for b in bounds), strict=True)
    return BoundTerms(*map(torch.cat, parts)), torch.cat(flows) if flows else None, evaluations


def draws(seed: int, first: int, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets in [0, 1) and signs for a batch, of each image its own."""
    places = [generator(seed, "flow", place) for place in range(first, first + len(x0))]
    offsets = torch.stack([torch.rand(x0.shape[1:], generator=g) for g in places])
    signs = torch.stack([torch.randint(0, 2, x0.shape[1:], generator=g) for g in places]) * 2.0 - 1
    return offsets.to(x0), signs.to(x0)


def summary(values: Tensor) -> dict[str, float | None]:
    """The mean over images with its standard error; of one image it has none."""
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": values.mean().item(), "standard_error": error}


def variance_of(asked: float | None, denoiser: Denoiser) -> float | str:
    """What the reverse steps have for their variance."""
    return asked if asked is not None else "learned" if denoiser.covariance else 0.0


def write_curve(path: Path, times: Tensor, log_snr: Tensor, bits: Tensor) -> None:
    """One row for each step of the bound: where it begins, and its bits per dimension."""
    columns: list[list[Any]] = [column.tolist() for column in (times, log_snr, bits)]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["time", "log_snr", "bits"])
        rows.writerows([f"{value:.6g}" for value in row] for row in zip(*columns, strict=True))
