"""python -m diffusion evaluate: how good the images are, with intervals, beside what real images would score."""

from __future__ import annotations

import csv
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.apps.output import entry, progress
from diffusion.apps.receipts import compare, read_receipt
from diffusion.apps.subject import Samples, Subject, samples_of, subject_of
from diffusion.errors import UserError
from diffusion.extractors import Extractor, Features, extract
from diffusion.metrics.bootstrap import Estimate, mean_of, share_of
from diffusion.metrics.comparison import compared
from diffusion.metrics.diversity import inception_score, within_classes
from diffusion.metrics.neighbours import backend
from diffusion.metrics.similarity import WINDOW, scales
from diffusion.metrics.sliced import sliced_wasserstein
from diffusion.models import factory
from diffusion.random import generator
from diffusion.tasks.charts import save_metrics
from diffusion.tasks.pictures import save_beside
from diffusion.tasks.reconstruct import evenly_spaced

log = logging.getLogger("diffusion")

REFERENCES = {"test": "train", "train": "test"}
"""The real images that are compared with, and those that make the floor: what real images would score in place of
generated ones."""
MOST = 10_000
SHOWN = 8
FEW = 30


@dataclass(frozen=True)
class Set:
    """Images with their labels and features."""

    images: Tensor
    labels: Tensor | None
    features: Features

    def __len__(self) -> int:
        return len(self.images)

    @property
    def strata(self) -> Tensor | None:
        """The class of each image; None where there are none, or several an image."""
        return self.labels if self.labels is not None and self.labels.ndim == 1 else None

    def take(self, places: Tensor) -> Set:
        """Those at `places`."""
        labels = None if self.labels is None else self.labels[places]
        features = Features(*(None if part is None else part[places] for part in self.features))
        return Set(self.images[places], labels, features)

    def of_class(self, k: int) -> Set:
        """Those of class k; an image of several classes is in each."""
        which = self.labels == k if self.labels.ndim == 1 else self.labels[:, k] == 1
        return self.take(which.nonzero().flatten())


def main(config: DictConfig) -> None:
    """Write metrics.json, cases.csv, metrics.png and samples.png into the output folder."""
    if config.compare is not None:
        if config.run or config.samples or len(config.compare) != 2:
            raise UserError("compare=[A,B] takes two folders that evaluate has written, and neither run nor samples")
        compare(*(read_receipt(Path(path)) for path in config.compare))
        return
    start = time.perf_counter()
    subject = subject_of(config, "evaluate")
    extractor = factory(config.extractor)(datamodule=subject.datamodule, cache=subject.cache, device=subject.device)
    wanted = min(MOST, (subject.given and len(subject.given)) or len(subject.datamodule.split("test")))
    before = time.perf_counter()
    samples = samples_of(subject, config, config.n or wanted)
    sampling = time.perf_counter() - before
    sets = sets_of(subject, samples, extractor, config.batch_size)
    generated, real = sets.pop("generated"), sets
    metrics, left_out = all_metrics(generated, real, config.seed)
    scored, reasons = single_metrics({"generated": generated, **real}, extractor, subject.spec, config.seed)
    metrics, left_out = metrics | scored, left_out | reasons
    classes, reasons = class_metrics(generated, real, subject, config.seed)
    save_metrics(metrics, subject.out / "metrics.png")
    save_beside(*shown(generated, real["train"], subject), subject.out / "samples.png")
    write_cases(subject.out / "cases.csv", samples, generated, real["test"])
    total = time.perf_counter() - start
    seconds = {"total": round(total, 1), "sampling": round(sampling, 1), "beyond_sampling": round(total - sampling, 1)}
    found = {
        "n": len(samples),
        "metrics": metrics,
        "classes": classes,
        "left_out": left_out | reasons,
        "receipt": subject.receipt(
            samples,
            extractor=extractor.receipt(),
            neighbours=backend(),
            ms_ssim_scales=scales(subject.spec.shape),
            intervals="95%, percentile bootstrap of the linear part, 1000 resamples",
            seed=config.seed,
            seconds=seconds,
        ),
    }
    (subject.out / "metrics.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    report(found)
    log.info("%s", subject.out / "metrics.png")


def sets_of(subject: Subject, samples: Samples, extractor: Extractor, batch_size: int) -> dict[str, Set]:
    """The generated, training and test images with their features."""
    splits = {name: subject.datamodule.reference(name) for name in REFERENCES}
    parts = {"generated": samples, **splits}
    found, done = {}, 0
    with progress() as bar:
        task = bar.add_task("extracting features", total=sum(map(len, parts.values())))
        for name, part in parts.items():
            features = extract(
                extractor,
                part.images,
                batch_size,
                on_batch=lambda count, done=done: bar.update(task, completed=done + count),
            )
            found[name] = Set(part.images, part.labels, features)
            done += len(part)
    return found


def all_metrics(
    generated: Set, real: dict[str, Set], seed: int, pixels: bool = True
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every comparison of two sets: metric -> reference -> figure and floor; and what is left out, with the reason."""
    metrics: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    # Without classes of the generated images how many show each is a matter of chance.
    stratified = generated.strata is not None
    for reference, other in REFERENCES.items():
        target, spare = real[reference], real[other]
        places = floor_of(spare, generated, seed)
        found, reasons = two_sets(generated, target, stratified, seed, pixels)
        floor, floor_reasons = two_sets(spare.take(places), target, stratified, seed, pixels)
        for name, estimate in found.items():
            figure = entry(estimate.interval(seed=seed), len(generated)) | {"m": len(target)}
            below = entry(floor[name].interval(seed=seed), len(places)) if name in floor else None
            metrics.setdefault(name, {})[reference] = figure | {"floor": below}
        left_out |= {f"{name}, {reference}": reason for name, reason in reasons.items()}
        left_out |= {f"floor of {name}, {reference}": why for name, why in floor_reasons.items() if name in found}
    return metrics, left_out


def floor_of(spare: Set, generated: Set, seed: int) -> Tensor:
    """The places of real images instead of the generated ones: as many, and as many of each class, if there are."""
    order = torch.randperm(len(spare), generator=generator("floor", seed))
    if generated.strata is None or spare.strata is None:
        return order[: len(generated)]
    classes = spare.strata[order]
    wanted = generated.strata.bincount(minlength=int(classes.max()) + 1).tolist()
    return torch.cat([order[classes == k][:count] for k, count in enumerate(wanted)])


def two_sets(a: Set, b: Set, stratified: bool, seed: int, pixels: bool) -> tuple[dict[str, Estimate], dict[str, str]]:
    classes = (a.strata, b.strata) if stratified else (None, None)
    found, reasons = compared(a.features.values, b.features.values, classes)
    if pixels and len(a) and len(b):
        found["sliced_wasserstein"] = sliced_wasserstein(a.images, b.images, seed).within(*classes)
    return found, reasons


def single_metrics(
    sets: dict[str, Set], extractor: Extractor, spec: DataSpec, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every figure of one set alone: metric -> set -> figure; and what is left out, with the reason."""
    metrics: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, part in sets.items():
        if part.features.probabilities is not None:
            estimate = inception_score(part.features.probabilities).within(part.strata)
            metrics.setdefault("inception_score", {})[name] = entry(estimate.interval(seed=seed), len(part))
        if extractor.reads_classes and sets["generated"].labels is not None:
            away = (part.features.probabilities.argmax(1) - part.labels).abs()
            found = {"label_accuracy": share_of(away == 0)}
            if spec.ordinal:
                found["grade_error"] = mean_of(away)._replace(least=0.0)
            for metric, estimate in found.items():
                within = estimate.within(part.strata).interval(seed=seed)
                metrics.setdefault(metric, {})[name] = entry(within, len(part))
        pairs = within_classes(part.images, part.strata, seed)
        if pairs is not None:
            metrics.setdefault("ms_ssim", {})[name] = entry(pairs.interval(seed=seed), len(pairs.influences[0]))
    if "inception_score" not in metrics:
        left_out["inception_score"] = "the extractor knows no classes"
    shape = sets["generated"].images.shape[1:]
    if scales(shape) < 1:
        left_out["ms_ssim"] = f"a side of {min(shape[1:])} pixels is smaller than the window of {WINDOW}"
    elif "ms_ssim" not in metrics:
        left_out["ms_ssim"] = "no class has two images"
    return metrics, left_out


def class_metrics(
    generated: Set, real: dict[str, Set], subject: Subject, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """The comparisons again, for the images of each class alone."""
    spec = subject.spec
    if generated.labels is None or spec.classes is None or spec.multi_label:
        return {}, {}
    classes, left_out = {}, {}
    for k in range(spec.classes):
        name = spec.names[k]
        mine = generated.of_class(k)
        if len(mine) == 0:
            left_out[name] = "no generated image is of this class"
            continue
        there = {split: part.of_class(k) for split, part in real.items()}
        empty = [split for split, part in there.items() if len(part) == 0]
        if empty:
            left_out[name] = f"there is no real image of this class in {' and '.join(empty)}"
            continue
        metrics, reasons = all_metrics(mine, there, seed, pixels=False)
        classes[name] = {"n": len(mine), "metrics": metrics}
        left_out |= {f"{name}: {metric}": reason for metric, reason in reasons.items()}
    return classes, left_out


def write_cases(path: Path, samples: Samples, generated: Set, test: Set) -> None:
    """One row for each generated image: its label, what the extractor reads, its distance to the nearest test image."""
    from diffusion.metrics.neighbours import nearest

    distances, places = nearest(generated.features.values.numpy(), test.features.values.numpy())
    probabilities = generated.features.probabilities
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "label", "read_as", "probability", "nearest_test_id", "distance"])
        for i in range(len(generated)):
            label = "" if generated.labels is None else int(generated.labels[i])
            read = (
                ("", "") if probabilities is None else (int(probabilities[i].argmax()), f"{probabilities[i].max():.4f}")
            )
            rows.writerow([int(samples.ids[i]), label, *read, int(places[i, 0]), f"{distances[i, 0]:.6g}"])


def shown(generated: Set, train: Set, subject: Subject) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Generated and real images of each class, by its name; of all where there are no classes, or many."""
    spec = subject.spec
    if generated.labels is None or spec.multi_label or not 0 < (spec.classes or 0) <= 10:
        groups = {"all": (generated.images, train.images)}
    else:
        groups = {name: (generated.of_class(k).images, train.of_class(k).images) for k, name in enumerate(spec.names)}
        groups = {name: pair for name, pair in groups.items() if all(map(len, pair))}
    chosen = {
        name: tuple(images[evenly_spaced(len(images), SHOWN)] for images in pair) for name, pair in groups.items()
    }
    return {name: pair[0] for name, pair in chosen.items()}, {name: pair[1] for name, pair in chosen.items()}


def report(found: dict[str, Any]) -> None:
    """The figures of all images, one a line."""
    log.info("%d generated images, features of %s", found["n"], found["receipt"]["extractor"]["name"])
    log.info("%20s  %-32s %s", "", "generated", "real in their place")
    for name, figures in found["metrics"].items():
        if "generated" in figures:
            floor = "  ".join(f"{split} {text(figures[split])}" for split in REFERENCES if split in figures)
            log.info("%20s  %-32s %s", name, text(figures["generated"]), floor)
        else:
            for split, figure in figures.items():
                label = f"{name}, {split}"
                log.info("%20s  %-32s %s", label, text(figure), text(figure["floor"]) if figure["floor"] else "-")
    for name, reason in found["left_out"].items():
        if ": " not in name:
            log.info("%20s  left out: %s", name, reason)
    if count := sum(": " in name for name in found["left_out"]):
        log.info("%d figures of single classes are left out: metrics.json says why", count)
    if found["n"] < FEW:
        log.warning("%d images are few: the intervals say little", found["n"])


def text(figure: dict[str, float]) -> str:
    return f"{figure['value']:.4g} ({figure['low']:.4g} to {figure['high']:.4g})"
