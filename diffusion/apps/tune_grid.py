"""python -m diffusion tune_grid: a grid of few steps, measured on the run's own model and kept with the run."""

from __future__ import annotations

import csv
import json
import logging
import time
from dataclasses import replace

from omegaconf import DictConfig

from diffusion.apps.drawn import choice
from diffusion.apps.output import best_device, output_folder, progress
from diffusion.apps.tasks import tuned_grid
from diffusion.errors import UserError
from diffusion.files import replace_file
from diffusion.grids import Uniform
from diffusion.random import seed_of
from diffusion.runs import Run
from diffusion.tasks.sample import check_positive, labels_of
from diffusion.tasks.tune_grid import FINE, check_deterministic, levels_of, runs_of, tune
from diffusion.tasks.tune_grid_figure import save_grids

log = logging.getLogger("diffusion")


def main(config: DictConfig) -> None:
    """Write RUN/grids/SAMPLER_STEPS.json, and metrics.json, cases.csv and grid.png into the output folder."""
    check_positive(n=config.n, steps=config.steps, batch_size=config.batch_size)
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema).under(config)
    run.check()
    if teacher := run.config.model.get("teacher"):
        raise UserError(f"a student of few steps is drawn in the steps that it has learnt: tune its teacher, {teacher}")
    if config.steps >= FINE:
        raise UserError(f"steps={config.steps}: fewer than the {FINE} of the reference, or there is nothing to gain")
    kept = tuned_grid(run.directory, config.sampler, config.steps)
    if kept.exists() and not config.overwrite:
        raise UserError(f"{kept} is there already: use grid=optimised, or give overwrite=true")
    generative = run.generative(best_device(config.device))
    check_deterministic(generative)
    labels = labels_of("all", config.n, run.model.classes(run.spec))
    out = output_folder(str(config.out or run.directory / "tune_grid" / kept.stem), config.overwrite)

    start = time.perf_counter()
    with progress() as bar:
        task = bar.add_task("tuning", total=runs_of(config.steps))
        found = tune(
            generative,
            run.spec.shape,
            config.steps,
            None if labels is None else {"label": labels},
            [seed_of("tune", config.seed, i) for i in range(config.n)],
            config.batch_size,
            on_run=lambda: bar.advance(task),
        )
        bar.update(task, completed=runs_of(config.steps))
    errors = {name: values.mean().item() for name, values in found.errors.items()}
    metrics = {
        "levels": [round(level, 4) for level in found.levels],
        "error": errors["optimised"],
        "error_of_own_grid": errors["own"],
        "steps": config.steps,
        **{part: choice(config[part]) for part in ("sampler", "grid", "guidance")},
        "n": config.n,
        "seed": config.seed,
        "step": run.position(),
        "weights": run.fingerprint(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    text = json.dumps(metrics, indent=2) + "\n"
    (out / "metrics.json").write_text(text)
    with (out / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", *found.errors])
        for i, values in enumerate(zip(*found.errors.values(), strict=True)):
            rows.writerow([i, *(f"{value:.6g}" for value in values)])
    own, scheduler = config.grid._target_.rsplit(".", 1)[-1], generative.denoiser.scheduler
    others = {f"the run's, {own}": generative.grid, "uniform in t": Uniform()}
    levels = {name: levels_of(replace(grid, steps=config.steps), scheduler) for name, grid in others.items()}
    sampler = kept.stem.rpartition("_")[0]
    save_grids(
        f"{config.steps} steps of {sampler}, and how far the samples are from those of {FINE}",
        {"optimised": found.levels} | levels,
        dict(zip(("optimised", *others), errors.values(), strict=False)),
        out / "grid.png",
    )
    kept.parent.mkdir(exist_ok=True)
    replace_file(kept, lambda path: path.write_text(text))
    log.info("distance from 64 steps: %.3g, on the run's own grid %.3g", errors["optimised"], errors["own"])
    log.info("use it with sample run=%s grid=optimised grid.steps=%d  (%s)", run.directory, config.steps, kept)
