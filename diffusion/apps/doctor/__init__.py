"""python -m diffusion doctor: are the data, the network and the time ready for training? Nothing is trained."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.apps import train
from diffusion.apps.cli import explain
from diffusion.apps.doctor import files, images
from diffusion.apps.doctor.findings import Report
from diffusion.apps.doctor.steps import trial
from diffusion.apps.doctor.training import about_training
from diffusion.apps.output import output_folder, progress
from diffusion.apps.parts import is_out_of_memory
from diffusion.errors import GateFailed, UserError
from diffusion.metrics.duplicates import Pairs
from diffusion.metrics.values import histogram
from diffusion.runs import datamodule_of
from diffusion.tasks.doctor_figure import Pair, save_figure
from diffusion.tasks.look import SPLITS, Looked, look
from diffusion.tasks.reconstruct import evenly_spaced, members_of

log = logging.getLogger("diffusion")

SAMPLES = 12
"""Images of each class in the figure."""


def main(config: DictConfig) -> None:
    """Print the table, the findings and the verdict; write doctor.png, metrics.json and cases.csv into `out`.

    Raises GateFailed, when all is written, if it is not ready.
    """
    for key in ("n", "reading", "looking", "seconds"):
        if not config[key] > 0:
            raise UserError(f"{key}={config[key]}: give a number above 0")
    cfg = config.train
    train.check(cfg)
    datamodule = datamodule_of(cfg)
    out = output_folder(str(config.out or Path(cfg.runs_dir) / ".doctor" / cfg.experiment), config.overwrite)

    report, clock = Report(), Clock()
    with clock("reading"):
        survey = datamodule.survey(config.reading)
        if survey is None:
            datamodule.setup()
        else:
            files.about_files(survey, cfg.dataset.get("unreadable", "refuse"), report)
            files.about_patients(survey, report)
            datamodule = survey.data
    pairs: dict[str, Pairs] = {}
    looked: Looked | None = None
    if datamodule is None:
        report.left_out |= {name: "there is nothing left to look at" for name in ("images", "network")}
    else:
        with progress() as bar:
            task = bar.add_task("looking at images", total=100)
            with clock("looking"):
                looked = look(
                    datamodule,
                    config.n,
                    config.looking,
                    cfg.seed,
                    lambda done, of: bar.update(task, completed=100 * done / of),
                )
            task = bar.add_task("comparing images", total=100)
            with clock("comparing"):
                pairs = about_images(looked, datamodule, report, lambda share: bar.update(task, completed=100 * share))
            task = bar.add_task("training steps", total=100)
            with clock("steps"):
                about_steps(
                    cfg, datamodule, config.seconds, report, lambda share: bar.update(task, completed=100 * share)
                )
    with clock("figure"):
        draw(cfg, datamodule, looked, pairs, report, out / "doctor.png")
    report.write_cases(out / "cases.csv")
    metrics = {
        "verdict": report.verdict,
        "source": str(cfg.dataset.get("path") or cfg.dataset.get("name") or "")
        if datamodule is None
        else datamodule.source,
        "experiment": cfg.experiment,
        **report.metrics,
        "findings": [
            {"kind": each.kind, "severity": each.severity, "text": each.text, "cases": len(each.cases)}
            for each in report.findings
        ],
        "left_out": report.left_out,
        "seconds": clock.seconds(),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    report.print(f"{cfg.experiment} on {metrics['source']}")
    log.info("%s", out / "doctor.png")
    if report.of("error"):
        raise GateFailed(report.verdict)
    print(report.verdict)


class Clock:
    """Seconds of each part, and of all."""

    def __init__(self) -> None:
        self._start, self._parts = time.perf_counter(), {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._parts[part] = round(time.perf_counter() - start, 1)

    def seconds(self) -> dict[str, float]:
        return {**self._parts, "total": round(time.perf_counter() - self._start, 1)}


def labels_of(datamodule: pl.LightningDataModule) -> dict[str, Tensor]:
    """The labels of each split, on the CPU; empty where there are none."""
    labels = {name: datamodule.split(name).labels for name in SPLITS}
    return {name: value.cpu() for name, value in labels.items() if value is not None}


def about_images(looked: Looked, datamodule: pl.LightningDataModule, report: Report, on_done: Any) -> dict[str, Pairs]:
    """All that is said of images; the pairs of duplicates."""
    spec, labels, name = datamodule.spec, labels_of(datamodule), images.names_of(looked, datamodule.names)
    images.about_classes(spec, looked.total, images.class_counts(spec, labels), report)
    images.about_sample(looked, report)
    images.about_values(looked, name, report)
    images.about_corners(looked, name, report)
    return images.about_duplicates(looked, name, images.labels_of(looked, labels, spec), report, on_done)


def about_steps(
    cfg: DictConfig, datamodule: pl.LightningDataModule, seconds: float, report: Report, on_done: Any
) -> None:
    """All that is said of training; what refuses to train is an error."""
    try:
        found = trial(cfg, datamodule, seconds, on_done)
    except Exception as error:
        if is_out_of_memory(error):
            report.rows["network"] = "needs more memory than there is"
            text = f"a step of {cfg.batch_size} images at once needs more memory than there is: training tries smaller "
            text += "parts of a batch; network.checkpointing=true or a smaller network need less"
            report.find("network", "error", f"{text} ({str(error).splitlines()[0]})")
            return
        line = explain(error)
        if line is None:
            raise
        report.rows["network"] = "does not train"
        report.find("network", "error", line)
    else:
        about_training(found, cfg, len(datamodule.split("train")), report)


def draw(
    cfg: DictConfig,
    datamodule: pl.LightningDataModule | None,
    looked: Looked | None,
    pairs: dict[str, Pairs],
    report: Report,
    path: Path,
) -> None:
    """doctor.png."""
    losses = [each for each in report.metrics.get("one_batch", {}).get("losses", []) if each is not None]
    if datamodule is None or looked is None:
        save_figure(cfg.experiment, {}, {}, ([], []), losses, [], path)
        return
    train_split, name = datamodule.split("train"), images.names_of(looked, datamodule.names)
    shown = []
    for kind, found in pairs.items():
        for i in range(min(len(found), 6 - len(shown))):
            # The later split first, as in the findings.
            places = int(found.second[i]), int(found.first[i])
            sides, names = zip(*(name(place) for place in places), strict=True)
            same = "exactly alike" if kind.startswith("exact") else f"correlation {float(found.alike[i]):.4f}"
            same += "" if datamodule.names is None else f"\n{sides[0]} and {sides[1]}"
            shown.append(Pair(tuple(_image(datamodule, looked, place) for place in places), names, same))
    save_figure(
        f"{cfg.experiment} on {datamodule.source}",
        samples_of(train_split, datamodule.spec),
        report.metrics.get("classes", {}),
        histogram(looked.counts),
        losses,
        shown,
        path,
    )


def _image(datamodule: pl.LightningDataModule, looked: Looked, place: int) -> Tensor:
    split, row = SPLITS[int(looked.part[place])], looked.row[place : place + 1]
    return datamodule.split(split).take(row).eight_bit().images[0]


def samples_of(split: Any, spec: DataSpec) -> dict[str, Tensor]:
    """A few training images of each class, by its name, uint8 (n, C, *S)."""
    groups = members_of(split.labels, spec) or {"images": torch.ones(len(split), dtype=torch.bool)}
    rows = {label: members.nonzero().flatten() for label, members in groups.items()}
    return {
        label: split.take(some[evenly_spaced(len(some), SAMPLES)]).eight_bit().images for label, some in rows.items()
    }
