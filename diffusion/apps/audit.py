"""python -m diffusion audit: does the model copy its training images? A share with an interval, and a gate."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress
from torch import Tensor

from diffusion.apps.output import entry, progress
from diffusion.apps.subject import Samples, Subject, samples_of, subject_of
from diffusion.errors import GateFailed, UserError
from diffusion.extractors import Extractor, extract
from diffusion.metrics.bootstrap import Interval
from diffusion.metrics.copies import PLANTED, Cases, CopyDetector, Ratios, lightly_changed, share
from diffusion.metrics.membership import auroc
from diffusion.metrics.neighbours import backend
from diffusion.models import factory
from diffusion.tasks.audit_figures import save_pairs, save_ratios
from diffusion.tasks.held_out import HeldOut
from diffusion.tasks.membership import membership_scores
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_positive

log = logging.getLogger("diffusion")

N = 1000
FIGURES = {f"{space}_{figure}": (space, figure) for figure in ("ratio", "distance") for space in ("pixel", "feature")}


def main(config: DictConfig) -> None:
    """Write metrics.json, cases.csv, held_out.csv, pairs.png and ratios.png into the output folder.

    near_duplicates.csv is there only if there are any. Raises GateFailed, when all is written, if more than
    `max_copies` of the images are flagged.
    """
    check(config)
    start = time.perf_counter()
    subject = subject_of(config, "audit")
    if subject.run and subject.datamodule.fingerprint() != subject.run.config.data.fingerprint:
        raise UserError(
            f"{subject.datamodule.source} is not what the run was trained on: copies can only be sought there"
        )
    extractor = factory(config.extractor)(datamodule=subject.datamodule, cache=subject.cache, device=subject.device)
    samples = samples_of(subject, config, config.n or (None if subject.given else N))
    drawn = time.perf_counter()
    train = subject.datamodule.reference("train")
    held_out = HeldOut.of(*map(subject.datamodule.reference, ("train", "val", "test")))
    planted = lightly_changed(train.images[evenly_spaced(len(train), PLANTED)], config.seed + 1)
    with progress() as bar:
        features = features_of(
            {"train": train.images, "held-out": held_out.images, "samples": samples.images, "planted": planted},
            extractor,
            config.batch_size,
            bar,
        )
        try:
            detector = CopyDetector(
                train.images,
                held_out.images,
                features["train"],
                features["held-out"],
                list(held_out.splits.values()),
                config.seed,
                Bars(bar),
            )
        except ValueError as error:
            raise UserError(
                f"{subject.datamodule.source}: {error}: there is nothing to hold the samples against; split by patient"
            ) from error
        cases = detector(samples.images, features["samples"], "samples")
        found_planted = detector(planted, features["planted"], "planted copies")
        membership, left_out = membership_of(subject, held_out, config, bar)
    left_out |= held_out.left_out
    if detector.thresholds["feature"] == 0:
        left_out["feature"] = (
            "with one held-out split there is no threshold that holds for other patients: none is flagged"
        )
    if len(detector.near_duplicates):
        text = f"{len(detector.near_duplicates)} of {len(held_out)} held-out images: near-duplicates of training images"
        left_out["near_duplicates"] = text
        log.warning("%s, see near_duplicates.csv; they say nothing of copies, and are left out", text)

    copies = share(cases.flagged)
    if config.max_copies is not None and copies.value <= config.max_copies < copies.high:
        log.warning(
            "%d images cannot show that no more than %g%% are copies: it may be up to %.2f%%; ask for a larger n",
            len(samples),
            100 * config.max_copies,
            100 * copies.high,
        )
    verdict = None if config.max_copies is None else ("fail" if copies.value > config.max_copies else "pass")
    metrics = {
        "n": len(samples),
        "copies": entry(copies, len(samples)),
        "held_out_flagged": entry(share(detector.held_out.flagged), len(detector.calibrating)),
        "planted_flagged": entry(share(found_planted.flagged), len(planted)),
        **{
            name: {"threshold": detector.thresholds[name], "median": median(getattr(cases, name).ratio)}
            for name in ("pixel", "feature")
        },
        "membership": membership,
        "max_copies": config.max_copies,
        "verdict": verdict,
        "left_out": left_out,
        "receipt": subject.receipt(
            samples,
            extractor=extractor.receipt(),
            neighbours=backend(),
            held_out={"splits": list(held_out.splits), "images": len(held_out), "compared": len(detector.kept)},
            seed=config.seed,
            seconds={
                "total": round(time.perf_counter() - start, 1),
                "beyond_sampling": round(time.perf_counter() - drawn, 1),
            },
        ),
    }
    write(subject.out, metrics, samples, cases, detector, held_out, train.images, config.shown)
    report(metrics)
    log.info("%s", subject.out / "pairs.png")
    if verdict == "fail":
        raise GateFailed(
            f"audit failed: {percent(copies)} of {len(samples)} images are flagged as copies of training images, and "
            f"max_copies is {100 * config.max_copies:g}%: see {subject.out / 'pairs.png'}"
        )


def check(config: DictConfig) -> None:
    """Raises UserError for a value out of range."""
    for key in ("members", "shown"):
        if type(config[key]) is not int:
            raise UserError(f"{key}={config[key]}: give a whole number")
    check_positive(members=config.members, shown=config.shown)
    limit = config.max_copies
    if limit is not None and (type(limit) not in (int, float) or not 0 <= limit <= 1):
        raise UserError(f"max_copies={limit}: give a share from 0 to 1, or null")


class Bars:
    """A bar for each thing that a `CopyDetector` says it does."""

    def __init__(self, bar: Progress):
        self.bar, self.tasks = bar, {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(f"searching {what}", total=total)
        self.bar.update(self.tasks[what], completed=done)


def features_of(parts: dict[str, Tensor], extractor: Extractor, batch_size: int, bar: Progress) -> dict[str, Tensor]:
    """The features (N, E) of images, by the same names."""
    task, found, done = bar.add_task("extracting features", total=sum(map(len, parts.values()))), {}, 0
    for name, images in parts.items():
        found[name] = extract(
            extractor, images, batch_size, on_batch=lambda count, done=done: bar.update(task, completed=done + count)
        ).values
        done += len(images)
    return found


def membership_of(
    subject: Subject, held_out: HeldOut, config: DictConfig, bar: Progress
) -> tuple[dict[str, float | int] | None, dict[str, str]]:
    """The AUROC with which the denoising error tells training images from held-out ones; or why there is none.

    The denoiser is asked without guidance, which changes what it says of an image.
    """
    if subject.run is None:
        return None, {"membership": "there is no model, only its samples"}
    if subject.run.config.model.get("noise", "gaussian") != "gaussian":
        return None, {"membership": "the model has learnt another noise than the Gaussian that it would be asked with"}
    run = subject.run.under(OmegaConf.create({"guidance": None}))
    generative = run.generative(subject.device)
    parts = (subject.datamodule.reference("train"), held_out)
    count = min(config.members, *map(len, parts))
    task, scores = bar.add_task("testing membership", total=2 * count), []
    for i, part in enumerate(parts):
        places = evenly_spaced(len(part), count)
        scores.append(
            membership_scores(
                generative.denoiser,
                generative.codec,
                part.images[places],
                part.labels[places] if run.model.classes(run.spec) is not None else None,
                config.seed,
                config.batch_size,
                on_batch=lambda done, i=i: bar.update(task, completed=i * count + done),
            ).numpy()
        )
    value, low, high = auroc(*scores).interval(seed=config.seed)
    return entry(Interval(value, max(0.0, low), min(1.0, high)), 2 * count), {}


def write(
    out: Path,
    metrics: dict[str, Any],
    samples: Samples,
    cases: Cases,
    detector: CopyDetector,
    held_out: HeldOut,
    train: Tensor,
    shown: int,
) -> None:
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_cases(
        out / "cases.csv", samples.ids.tolist(), [text_of(samples.labels, i) for i in range(len(samples))], cases
    )
    chosen = detector.calibrating.tolist()
    ids, labels = [held_out.ids[i] for i in chosen], [text_of(held_out.labels, i) for i in chosen]
    write_cases(out / "held_out.csv", ids, labels, detector.held_out)
    if len(detector.near_duplicates):
        write_near_duplicates(
            out / "near_duplicates.csv",
            [held_out.ids[i] for i in detector.near_duplicates],
            detector.near_duplicate_ratios,
        )
    worst = cases.ratio.argsort(kind="stable")[:shown]
    nearest_train, nearest_held_out = (torch.from_numpy(places[worst]) for places in (cases.train, cases.held_out))
    save_pairs(
        {
            "sample": (samples.images[torch.from_numpy(worst)], [f"sample {samples.ids[i]}" for i in worst]),
            "nearest\ntraining image": (train[nearest_train], [f"train/{i}" for i in nearest_train]),
            "nearest\nheld-out image": (held_out.images[nearest_held_out], [held_out.ids[i] for i in nearest_held_out]),
        },
        [f"{cases.ratio[i]:.2f}, copy" if cases.flagged[i] else f"{cases.ratio[i]:.2f}" for i in worst],
        cases.flagged[worst].tolist(),
        out / "pairs.png",
    )
    save_ratios(
        {
            name: (getattr(cases, name).ratio, getattr(detector.held_out, name).ratio, detector.thresholds[name])
            for name in ("pixel", "feature")
        },
        out / "ratios.png",
    )


def write_cases(path: Path, ids: Iterable[int | str], labels: Sequence[str], cases: Cases) -> None:
    """One row for each image. ratio is below 1 where it is flagged; see `Cases`."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "label", "flagged", "ratio", "nearest_train_id", *FIGURES])
        figures = [getattr(getattr(cases, space), figure) for space, figure in FIGURES.values()]
        for i, (name, label) in enumerate(zip(ids, labels, strict=True)):
            values = [f"{float(each[i]):.6g}" for each in figures]
            rows.writerow([name, label, int(cases.flagged[i]), f"{cases.ratio[i]:.6g}", cases.train[i], *values])


def write_near_duplicates(path: Path, ids: Iterable[str], ratios: Ratios) -> None:
    """One row for each held-out image that is nearly a training image."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "nearest_train_id", "pixel_ratio", "pixel_distance"])
        for name, place, ratio, distance in zip(ids, ratios.train, ratios.ratio, ratios.distance, strict=True):
            rows.writerow([name, place, f"{ratio:.6g}", f"{distance:.6g}"])


def text_of(labels: Tensor | None, i: int) -> str:
    """The label of image i as it is written; several are set apart by spaces."""
    return "" if labels is None else " ".join(map(str, labels[i].flatten().tolist()))


def median(ratios: np.ndarray) -> float | None:
    value = float(np.median(ratios))
    return value if math.isfinite(value) else None


def percent(found: Interval) -> str:
    return f"{100 * found.value:.2f}% ({100 * found.low:.2f}% to {100 * found.high:.2f}%)"


def report(metrics: dict[str, Any]) -> None:
    """What was found, one a line."""
    shares = {
        "copies": "images are flagged as copies of training images",
        "held_out_flagged": "held-out images are flagged",
        "planted_flagged": "lightly changed training images are flagged",
    }
    for key, text in shares.items():
        found = metrics[key]
        log.info("%24s  of %d %s", percent(Interval(*(found[k] for k in Interval._fields))), found["n"], text)
    if found := metrics["membership"]:
        log.info(
            "%.3f (%.3f to %.3f)  membership AUROC; 0.5 tells nothing", found["value"], found["low"], found["high"]
        )
    for name, reason in metrics["left_out"].items():
        log.info("%s left out: %s", name, reason)
    if metrics["verdict"]:
        log.info("%s, at most %g%% may be copies", metrics["verdict"], 100 * metrics["max_copies"])
