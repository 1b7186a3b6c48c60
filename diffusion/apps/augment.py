"""python -m diffusion augment: variants of real images, each of its own class, as a data set of class folders."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.apps.class_folders import ClassFolders, check_pictures
from diffusion.apps.originals import originals_of, plain
from diffusion.apps.output import best_device, output_folder, progress, summary, write_cases
from diffusion.apps.translate import strengths_of
from diffusion.errors import UserError
from diffusion.extractors import domain_classifier, predictions
from diffusion.metrics import left_out, reconstruction_metrics
from diffusion.runs import datamodule_of
from diffusion.tasks.augment import Redraw, Variant, drawn, planned
from diffusion.tasks.edit_figure import save_columns
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_positive, to_uint8

log = logging.getLogger("diffusion")

KEPT = ("psnr", "ssim", "sharpness")
FEWEST = 10
"""Training images of each class, below which a classifier would judge nothing."""
MOST_SHOWN = 6
PROMPT = "a microscope image of {class}"
OF_PIPELINES = ("prompt", "size", "steps")
OF_RUNS = ("checkpoint", "ema", "sampler", "grid", "codec")
DEFINITIONS = {
    "strength": "sigma / sqrt(alpha^2 + sigma^2) of the noise that a variant is redrawn from; 1 is noise alone",
    "psnr": "to the original, in dB: how far the variant has moved; mean over variants, with a 95% bootstrap interval",
    "ssim": "structural similarity to the original",
    "sharpness": "mean length of the gradient over that of the original: below 1 is blurred",
    "kept": "share of variants in which a classifier of the training images, which include the originals, sees the "
    "original's class",
}


@dataclass(frozen=True)
class Source:
    """What redraws, whose images, and what a receipt says of both.

    places: int64 (N,), of the originals in their split. told: their classes as `redraw` takes them, or None.
    """

    redraw: Redraw
    datamodule: pl.LightningDataModule
    spec: DataSpec
    places: Tensor
    told: Tensor | None
    receipt: dict[str, Any]
    beside: Path
    cache: Path
    device: torch.device


def main(config: DictConfig) -> None:
    """Write images/, manifest.csv, metrics.json, cases.csv and augment.png into the output folder."""
    if (config.run is None) == (config.pipeline is None):
        raise UserError("augment needs run=RUN_DIR, or pipeline=DIR dataset=NAME: one of the two")
    for key in OF_PIPELINES if config.run else OF_RUNS:
        if config[key] is not None:
            raise UserError(f"{key}: a {'run' if config.run else 'pipeline'} takes no {key}; leave it out")
    check_positive(variants=config.variants, shown=config.shown)
    strengths = strengths_of(plain(config.strength))
    source = of_run(config) if config.run else of_pipeline(config)
    split = source.datamodule.split(config.split)
    out = output_folder(str(config.out or source.beside / "augment"), config.overwrite)

    start = time.perf_counter()
    remove_earlier(out)
    plan = planned(source.places.tolist(), config.variants, strengths, config.seed)
    folders = ClassFolders(out / "images", source.datamodule, source.spec)
    originals = split.take(source.places)
    found: dict[Variant, Tensor] = {}
    with progress() as bar:
        if config.real:
            total = sum(len(source.datamodule.split(name)) for name in ("train", "val", "test"))
            task = bar.add_task("copying real images", total=total)
            folders.copy(lambda: bar.advance(task))
        task = bar.add_task("drawing variants", total=len(plan))
        made = drawn(source.redraw, lambda rows: originals[rows]["image"], source.told, plan, config.batch_size)
        for variant, image in made:
            folders.write(config.split, int(source.places[variant.row]), image, variant)
            found[variant] = to_uint8(image).cpu()
            bar.advance(task)
    write_manifest(out / "manifest.csv", folders.rows)

    rows = torch.tensor([variant.row for variant in plan])
    eight = originals.eight_bit()
    images, labels = torch.stack([found[variant] for variant in plan]), eight.labels
    judged = reconstruction_metrics(eight.images[rows], images)
    cases = {"variant": torch.tensor([float(v.number) for v in plan])}
    cases["strength"] = torch.tensor([v.strength for v in plan], dtype=torch.float64)
    measured = {key: judged[key] for key in KEPT if key in judged}
    omitted = {key: why for key, why in left_out(source.spec.shape).items() if key in KEPT}
    if why := no_judge(source, config):
        omitted["kept"] = why
    else:
        classifier = domain_classifier(source.datamodule, source.cache, source.device)
        seen = predictions(classifier, images, batch_size=config.batch_size).cpu()
        measured["kept"] = (seen == labels[rows]).double()
    metrics = {
        "n": len(source.places),
        "variants": len(plan),
        "of_each": config.variants,
        "split": config.split,
        "strengths": {
            f"{s:g}": {"n": int((which := cases["strength"] == s).sum())}
            | {key: summary(values[which], config.seed) for key, values in measured.items()}
            for s in strengths
            if (cases["strength"] == s).any()
        },
        "definitions": DEFINITIONS,
        "left_out": omitted,
        **source.receipt,
        "data": {"source": source.datamodule.source, "fingerprint": source.datamodule.fingerprint()},
        "seed": config.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_cases(out / "cases.csv", source.places[rows], None if labels is None else labels[rows], cases | measured)
    classes = [] if labels is None else [source.spec.names[k] for k in labels.tolist()]
    save_figure(eight.images, classes, plan, images, config.shown, out / "augment.png")
    for s, values in metrics["strengths"].items():
        said = "  ".join(f"{key} {values[key]['value']:.3g}" for key in measured if values[key]["value"] is not None)
        log.info("strength %-5s  %s", s, said)
    for key, why in omitted.items():
        log.info("left out: %s: %s", key, why)
    log.info("%s", out / "augment.png")
    log.info("%d variants of %d images; train on them with\n  %s", len(plan), len(source.places), folders.words)
    if config.split == "train" and config.run and source.told is not None:
        log.info("ask what they are worth with\n  python -m diffusion utility run=%s variants=%s", config.run, out)


def of_run(config: DictConfig) -> Source:
    """The run's model on its own data."""
    originals = originals_of(config)
    run, generative = originals.run, originals.generative
    told = originals.told(None)
    check_pictures(run.spec, originals.datamodule.source)

    def redraw(images: Tensor, strength: float, labels: Tensor | None, seeds: Sequence[int]) -> Tensor:
        cond = None if labels is None else {"label": labels}
        return generative.redraw(images, strength, cond, seeds=seeds)

    receipt = originals.receipt(config)
    cache = Path(config.cache or run.directory.resolve().parent.parent / ".cache")
    return Source(
        redraw, originals.datamodule, run.spec, originals.places, told, receipt, run.directory, cache, originals.device
    )


def of_pipeline(config: DictConfig) -> Source:
    """A pipeline of the diffusers library on any data. Raises UserError for keys that do not fit it."""
    if not config.dataset:
        raise UserError("pipeline=DIR needs dataset=NAME, the real images that it is to redraw")
    if config.split not in ("train", "val", "test"):
        raise UserError(f"split={config.split}: give train, val or test")
    numbers = {key: config[key] for key in ("n", "size", "steps") if config[key] is not None}
    check_positive(batch_size=config.batch_size, **numbers)
    guidance = config.guidance
    if guidance and (not guidance["_target_"].endswith(".ClassifierFree") or guidance.get("rescale")):
        raise UserError("a pipeline has classifier-free guidance alone: give guidance=NUMBER, or leave it out")
    prompt = PROMPT if config.prompt is None else config.prompt
    if not isinstance(prompt, str) or not prompt:
        raise UserError(f"prompt={prompt}: give a text, such as prompt='{PROMPT}'")
    datamodule = datamodule_of(config)
    spec = datamodule.spec
    check_pictures(spec, datamodule.source)
    if spec.classes is None and "{class}" in prompt:
        raise UserError(f"{datamodule.source} has no classes: give a prompt without {{class}}")
    device = best_device(config.device)
    from diffusion.tasks.pipeline import Pipeline

    prompts = [prompt.replace("{class}", name) for name in spec.names] or [prompt]
    scale = 7.5 if guidance is None else float(guidance.scale) if guidance else 1.0
    pipeline = Pipeline(config.pipeline, prompts, config.size, config.steps or 50, scale, device)
    split = datamodule.split(config.split)
    places = evenly_spaced(len(split), config.n or len(split))
    told = None if spec.classes is None else split.labels[places]
    receipt = {
        "pipeline": str(config.pipeline),
        "prompts": prompts,
        "size": pipeline.size,
        "steps": pipeline.steps,
        "guidance": scale,
        "strength_of_the_library": {f"{s:g}": pipeline.strength_of(s) for s in strengths_of(plain(config.strength))},
    }
    for s, theirs in receipt["strength_of_the_library"].items():
        log.info("strength %s is %.3g in the pipeline's own measure, the share of its steps", s, theirs)
    runs = Path("runs")
    return Source(
        pipeline, datamodule, spec, places, told, receipt, runs, Path(config.cache or runs / ".cache"), device
    )


def no_judge(source: Source, config: DictConfig) -> str | None:
    """Why no classifier is asked, or None."""
    if not config.classifier:
        return "classifier=false"
    if source.spec.classes is None or source.spec.classes < 2:
        return "there are no classes to tell apart"
    fewest = int(source.datamodule.split("train").labels.bincount(minlength=source.spec.classes).min())
    return None if fewest >= FEWEST else f"{fewest} training images of a class are too few for a classifier to judge"


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row for each file: real ones with variant 0, a strength of 0 and no seed."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def remove_earlier(out: Path) -> None:
    """Delete the images that an earlier `augment` has written there, so that none of them passes for one of these."""
    try:
        with (out / "manifest.csv").open(newline="") as file:
            names = [row["file"] for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError):
        return
    for name in names:
        (out / "images" / name).unlink(missing_ok=True)


def save_figure(
    originals: Tensor, classes: Sequence[str], plan: Sequence[Variant], images: Tensor, shown: int, path: Path
) -> None:
    """A row for each of some originals: itself and its class, then its variants, up to six, at rising strength."""
    rows = evenly_spaced(len(originals), shown).tolist()
    of_row = {row: [] for row in rows}
    for variant, image in zip(plan, images, strict=True):
        if variant.row in of_row:
            of_row[variant.row].append((variant.strength, variant.number, image))
    chosen = []
    for found in of_row.values():
        found.sort(key=lambda each: each[:2])
        chosen.append([found[i] for i in evenly_spaced(len(found), MOST_SHOWN).tolist()])
    columns, captions = {"original": originals[rows]}, {}
    if classes:
        captions["original"] = [classes[row] for row in rows]
    strengths = [[each[0] for each in column] for column in zip(*chosen, strict=True)]
    alike = all(len(set(each)) == 1 for each in strengths)
    for k, column in enumerate(zip(*chosen, strict=True)):
        # A space for each column before it, which makes keys of titles that read alike.
        title = (f"strength {strengths[k][0]:g}" if alike else f"variant {k + 1}") + " " * k
        columns[title] = torch.stack([each[2] for each in column])
        if not alike:
            captions[title] = [f"strength {strength:g}" for strength in strengths[k]]
    save_columns(columns, path, captions)
