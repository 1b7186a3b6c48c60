"""Quality against evaluations of the network, for every sampler, on `experiment=digits_pixel` over several seeds.

    python benchmarks/few_steps.py                    # trains three seeds first, six minutes on two cores
    python benchmarks/few_steps.py --runs RUN_DIR [RUN_DIR ...]

Of every sampler, 1,000 images for each number of evaluations, and their distance ratio as benchmarks/digits.py has
it. The grid is the recipe's with other numbers of steps; "optimised" is the recipe's sampler on the grid that
`python -m diffusion tune_grid` finds for it, on 64 images of other noise. The model is asked without guidance, which
acts between two noise levels and is not smooth there; --guidance recipe puts it in. A sampler takes as many steps as
the evaluations allow: where guidance acts it asks the network twice, and counts so.

The figures are written to RUNS_DIR/few_steps.json and drawn in docs/images/few_steps.png. Status 1 if the mean distance
of the recipe's sampler at 8 evaluations, on either grid, is more than 1.15 times that at 35.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands  # noqa: E402
from benchmarks.digits import Judge, command  # noqa: E402
from diffusion.generative import GenerativeModel  # noqa: E402
from diffusion.grids import Optimised, TimeGrid  # noqa: E402
from diffusion.random import seed_of  # noqa: E402
from diffusion.runs import Run  # noqa: E402
from diffusion.samplers import (  # noqa: E402
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    euler,
    heun,
    midpoint,
    unipc,
)
from diffusion.tasks.sample import counted_evaluations, labels_of, of_label, sample  # noqa: E402
from diffusion.tasks.tune_grid import tune  # noqa: E402

EVALUATIONS = (4, 6, 8, 10, 12, 16, 24, 35)
FEW, MANY, MOST = 8, 35, 1.15
OPTIMISED_UP_TO = 12
SAMPLERS: dict[str, Callable] = {
    "ddpm": ddpm,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "ddim, euler": ddim,
    "euler, churn 10": partial(euler, churn=10.0),
    "heun": heun,
    "midpoint": midpoint,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
}
IMAGE, CLASSES = (1, 8, 8), 10
GridOf = Callable[[int], TimeGrid]
"""Number of steps -> grid."""


def evaluations(generative: GenerativeModel) -> int:
    """Of one image, as its sampler, grid and guidance have it."""
    with counted_evaluations(generative.denoiser) as count:
        generative.sample(IMAGE, {"label": torch.zeros(1, dtype=torch.long)}, seeds=[0])
    return count()


def within(generative: GenerativeModel, most: int, grid_of: GridOf) -> GenerativeModel | None:
    """The model with the largest number of steps that takes at most so many evaluations, or None for none."""
    for steps in range(most, 1, -1):
        found = replace(generative, grid=grid_of(steps))
        if evaluations(found) <= most:
            return found
    return None


def optimised(generative: GenerativeModel) -> GridOf:
    """Number of steps -> the grid that `tune_grid` finds, each once."""
    known: dict[int, TimeGrid] = {}
    labels = labels_of("all", 64, CLASSES)

    def grid_of(steps: int) -> TimeGrid:
        if steps not in known:
            seeds = [seed_of("tune", 0, i) for i in range(len(labels))]
            found = tune(generative, IMAGE, steps, {"label": labels}, seeds)
            known[steps] = Optimised(steps, tuple(found.levels))
        return known[steps]

    return grid_of


def curve(
    generative: GenerativeModel, judge: Judge, n: int, points: Sequence[int], grid_of: GridOf
) -> list[dict[str, Any]]:
    """Distance, accuracy and novelty of n images at each number of evaluations that can be had."""
    labels, rows = labels_of("all", n, CLASSES), []
    for most in points:
        chosen = within(generative, most, grid_of)
        if chosen is None:
            continue
        with counted_evaluations(chosen.denoiser) as count:
            images = sample(chosen, IMAGE, n, of_label(labels), seed=0, batch_size=500)
        figures = judge.measure(images.numpy(), labels.numpy())
        rows.append({"at_most": most, "evaluations": count() / n, "steps": chosen.grid.steps, **figures})
    return rows


def trained(seed: int, runs_dir: Path, words: list[str]) -> Path:
    """The run of this seed, trained unless it is finished."""
    run_id = f"few-steps-{seed}"
    command("train.py", "experiment=digits_pixel", f"seed={seed}", f"run_id={run_id}", f"runs_dir={runs_dir}", *words)
    return runs_dir / "digits_pixel" / run_id


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """The mean of the seeds, one line a sampler, and the range of the seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    canvas = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = canvas.subplots()
    names = list(dict.fromkeys(row["sampler"] for row in rows))
    for i, name in enumerate(names):
        mine = [row for row in rows if row["sampler"] == name]
        points = sorted({row["at_most"] for row in mine})
        values = [[row["distance_ratio"] for row in mine if row["at_most"] == point] for point in points]
        spent = [float(np.mean([row["evaluations"] for row in mine if row["at_most"] == point])) for point in points]
        bold, color = name.startswith("optimised"), "black" if name.startswith("optimised") else f"C{i}"
        axes.plot(
            spent,
            [float(np.mean(v)) for v in values],
            color=color,
            label=name,
            marker="o",
            markersize=4,
            linewidth=2.4 if bold else 1.4,
            linestyle=("-", "--", "-.")[i // 5] if not bold else "-",
        )
        axes.fill_between(
            spent, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.08, linewidth=0
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(EVALUATIONS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(EVALUATIONS, [str(e) for e in EVALUATIONS])
    axes.set_xlim(EVALUATIONS[0] / 1.1, EVALUATIONS[-1] * 1.1)
    axes.set_ylim(1.2, 8)  # what lies above is no digit
    marks = [mark for mark in (1, 1.5, 2, 3, 5, 8) if axes.get_ylim()[0] <= mark <= axes.get_ylim()[1]]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
    axes.set_xlabel("evaluations of the network for each image")
    axes.set_ylabel("Fréchet distance to the test half\n(1: that of the real training half)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)


def mean_at(rows: list[dict[str, Any]], name: str, most: int) -> float:
    return float(np.mean([row["distance_ratio"] for row in rows if (row["sampler"], row["at_most"]) == (name, most)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, nargs="+", default=None, help="runs of digits_pixel; else they are trained"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=commands.folder, default=commands.FOLDER)
    parser.add_argument("--set", nargs="*", default=[], help="further overrides of train.py")
    parser.add_argument("--guidance", choices=["recipe", "none"], default="none")
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--evaluations", type=commands.count, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--n", type=commands.count, default=1000)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; by default RUNS_DIR/few_steps.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "few_steps.png")
    options = parser.parse_args()

    path = options.out or options.runs_dir / "few_steps.json"
    facts = {"guidance": options.guidance, "n": options.n}
    commands.write(path, facts)
    judge, rows, start = Judge(), [], time.perf_counter()
    runs = options.runs or [trained(seed, options.runs_dir, options.set) for seed in options.seeds]
    for directory in runs:
        run = Run.open(directory)
        if options.guidance == "none":
            run = run.under(OmegaConf.create({"guidance": None}))
        shipped = run.generative()
        named = {name: replace(shipped, sampler=SAMPLERS[name]) for name in options.samplers}
        own = partial(replace, shipped.grid)
        jobs = [(name, model, lambda steps, own=own: own(steps=steps)) for name, model in named.items()]
        jobs.append(("optimised dpmpp_2m", shipped, optimised(shipped)))
        for name, model, grid_of in jobs:
            points = [e for e in options.evaluations if name in named or e <= OPTIMISED_UP_TO]
            for row in curve(model, judge, options.n, points, grid_of):
                rows.append({"run": directory.name, "seed": run.config.seed, "sampler": name, **row})
                print(
                    f"{directory.name}  {name:<18}  {row['evaluations']:5.1f} evaluations, {row['steps']:2d} steps:  "
                    f"distance {row['distance_ratio']:.3f}  accuracy {row['accuracy']:.3f}",
                    f"  ({time.perf_counter() - start:.0f} s)",
                    flush=True,
                )
            commands.write(path, {**facts, "rows": rows})
    guided = "with the recipe's guidance" if options.guidance == "recipe" else "without guidance"
    draw(rows, f"digits_pixel, {options.n:,} images, {len(runs)} seed{'s' * (len(runs) > 1)}, {guided}", options.figure)
    if {FEW, MANY} <= set(options.evaluations) and "dpmpp_2m" in options.samplers:
        names = ("dpmpp_2m", "optimised dpmpp_2m")
        ratios = [mean_at(rows, name, FEW) / mean_at(rows, "dpmpp_2m", MANY) for name in names]
        for name, ratio in zip(names, ratios, strict=True):
            print(f"{name}: distance at {FEW} evaluations is {ratio:.3f} times that at {MANY} (at most {MOST})")
        sys.exit(max(ratios) > MOST)


if __name__ == "__main__":
    commands.run(main)
