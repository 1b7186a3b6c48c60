"""python -m diffusion utility: are synthetic images of use for training? In numbers, and in a figure."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from diffusion.apps.output import entry, progress
from diffusion.apps.subject import Samples, Subject, samples_of, subject_of
from diffusion.apps.variants import checked, described, variants_of
from diffusion.errors import UserError
from diffusion.metrics.classification import auroc_values
from diffusion.metrics.paired import crossed_interval, paired_difference
from diffusion.random import seed_of
from diffusion.tasks.sample import check_positive
from diffusion.tasks.utility import (
    ARMS,
    OF_VARIANTS,
    Labelled,
    Variants,
    probabilities,
    steps_of,
    trained,
    within_budget,
)
from diffusion.tasks.utility_figure import save_figure

log = logging.getLogger("diffusion")

BUDGETS = (10, 50, "all")
MOST_SAMPLES = 2000
WITH_SYNTHETIC = ("synthetic", "both", "synthetic_then_real", *OF_VARIANTS)

Given = dict[str, dict[str, Tensor]]
"""By budget and arm, the probabilities (S, N, K) that the classifiers of all seeds give the test images."""


def main(config: DictConfig) -> None:
    """Write metrics.json, cases.csv and utility.png into the output folder."""
    if config.steps is not None and type(config.steps) is not int:
        raise UserError(f"steps={config.steps}: give a whole number, or leave it out")
    check_positive(seeds=config.seeds, steps=1 if config.steps is None else config.steps)
    budgets = budgets_of(config.budgets)
    folder = checked(config)
    start = time.perf_counter()
    subject = subject_of(config, "utility")
    check_classes(subject)
    variants = None if folder is None else variants_of(folder, subject.datamodule, config.probability)
    spec, train, test = subject.spec, *(subject.datamodule.reference(name) for name in ("train", "test"))
    samples = samples_of(subject, config, config.n or (None if subject.given else min(len(train), MOST_SAMPLES)))
    check_samples(samples, subject)
    sampled = time.perf_counter()
    note = (
        f"a budget limits what the classifiers see of the {len(train)} real training images; the model that made the "
        + ("synthetic ones may have learnt from all of them" if subject.given else "synthetic ones learnt from all")
    )
    log.info("%d synthetic images; %s", len(samples), note)

    steps = config.steps or steps_of(spec.shape)
    given = classified(subject, samples, budgets, config.seeds, steps, config.seed, variants)
    left_out, names = {}, spec.names
    if variants is not None and (bare := int((variants.first.diff() == 0).sum())):
        left_out["variants"] = f"{bare} of {len(train)} training images have none, and are never replaced"
    absent = [
        name for name, count in zip(names, samples.labels.bincount(minlength=len(names)), strict=True) if not count
    ]
    if absent:
        left_out["synthetic"] = f"no synthetic image of {', '.join(absent)}"
        log.warning(
            "there is no synthetic image of %s: classifiers without real ones cannot name it", ", ".join(absent)
        )
    if config.seeds == 1:
        left_out["seeds"] = "with one seed the intervals know of no other trainings, only of other test images"
    counts = train.labels.bincount(minlength=len(names)).tolist()
    for budget in budgets:
        for name, count in zip(names, counts, strict=True):
            if budget != "all" and count < budget:
                left_out[f"{budget}: {name}"] = f"{count} training images, which is all there are"
    metrics = {
        "n": len(samples),
        "seeds": config.seeds,
        "steps": steps,
        "arms": list(next(iter(given.values()))),
        "note": note,
        **({} if variants is None else {"variants": described(folder, variants)}),
        "budgets": {},
        "left_out": left_out | not_scored(test.labels, names),
        "receipt": subject.receipt(
            samples,
            seed=config.seed,
            intervals="95%, of other trainings and other test images; p not corrected for the choice of the best arm",
            seconds={
                "total": round(time.perf_counter() - start, 1),
                "sampling": round(sampled - start, 1),
            },
        ),
    }
    for budget, arms in given.items():
        real = sum(counts if budget == "all" else (min(count, int(budget)) for count in counts))
        metrics["budgets"][budget] = {
            "images": {"real": real, "synthetic": len(samples)},
            **scores(arms, test.labels, names),
        }
    (subject.out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_cases(subject.out / "cases.csv", test.labels, given)
    save_figure(metrics["budgets"], subject.out / "utility.png")
    report(metrics)
    log.info("%s", subject.out / "utility.png")


def budgets_of(given: Any) -> list[int | str]:
    """The budgets as a list without repetitions. Raises UserError for what is no number above 0, and not all."""
    wanted = list(BUDGETS) if given is None else list(given) if isinstance(given, (list, ListConfig)) else [given]
    for budget in wanted:
        if budget != "all" and (type(budget) is not int or budget < 1):
            raise UserError(f"budgets={given}: give whole numbers above 0, or all, such as budgets=[10,50,all]")
    if not wanted:
        raise UserError("budgets=[]: give at least one, such as budgets=[10,50,all]")
    return list(dict.fromkeys(wanted))


def check_classes(subject: Subject) -> None:
    """Raises UserError unless each image of the data is of one class, and the run's model knows it."""
    spec, source, run = subject.spec, subject.datamodule.source, subject.run
    if spec.classes is None:
        raise UserError(f"{source} has no classes: utility trains classifiers, for which the data need labels")
    if spec.multi_label:
        raise UserError(f"{source} has images of several classes at once: utility is for those of one class each")
    if run and run.model.classes(run.spec) is None:
        raise UserError(
            f"{subject.name} was trained without labels: its images have no classes, and no classifier learns from them"
        )


def check_samples(samples: Samples, subject: Subject) -> None:
    """Raises UserError unless the samples are labelled, and shaped as the data are."""
    spec = subject.spec
    if samples.labels is None:
        raise UserError(f"samples={subject.name} has no labels: add int `labels` (N,), as `sample` writes for classes")
    if samples.images.shape[1:] != spec.shape or int(samples.labels.max()) >= spec.classes:
        raise UserError(
            f"{subject.name} makes images of shape {tuple(samples.images.shape[1:])} and {subject.run.spec.classes} "
            f"classes, but {subject.datamodule.source} has {spec.shape} and {spec.classes}: choose the data it is of"
        )


def classified(
    subject: Subject,
    samples: Samples,
    budgets: Sequence[int | str],
    seeds: int,
    steps: int,
    seed: int,
    variants: Variants | None = None,
) -> Given:
    """Train all classifiers, and ask them about the test split. Those of no real image serve all budgets.

    Of the variants a budget has those of its own real images alone.
    """
    train, test, device = subject.datamodule.reference("train"), subject.datamodule.reference("test"), subject.device
    real = Labelled(train.images.to(device), train.labels.to(device))
    synthetic = Labelled(samples.images.to(device), samples.labels.to(device))
    arms = ARMS if variants is None else (*ARMS, *OF_VARIANTS)
    variants = None if variants is None else variants._replace(images=variants.images.to(device))
    plan = [(budgets[0], "synthetic"), *((budget, arm) for budget in budgets for arm in arms if arm != "synthetic")]
    given: Given = {str(budget): {} for budget in budgets}
    with progress() as bar:
        task, done = bar.add_task("training classifiers", total=len(plan) * seeds), 0
        for budget, arm in plan:
            answers = []
            for repeat in range(seeds):
                own = seed_of(seed, repeat)
                chosen, theirs = real, variants
                if budget != "all":
                    places = within_budget(train.labels, budget, own)
                    chosen, theirs = real.take(places), None if variants is None else variants.take(places)
                classifier = trained(
                    arm,
                    chosen,
                    synthetic,
                    subject.spec.classes,
                    steps,
                    own,
                    lambda step, before=done: bar.update(task, completed=before + step / steps),
                    theirs,
                )
                answers.append(probabilities(classifier, test.images))
                done += 1
                bar.update(task, completed=done)
            for name in given if arm == "synthetic" else [str(budget)]:
                given[name][arm] = torch.stack(answers)
    return {budget: {arm: answers[arm] for arm in arms} for budget, answers in given.items()}


def scores(arms: Mapping[str, Tensor], labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """One budget's figures for each arm, and how they differ from those of real images alone."""
    right = {arm: right_of(given, labels) for arm, given in arms.items()}
    areas = {arm: [auroc_values(each, labels) for each in given] for arm, given in arms.items()}
    values = {arm: {"accuracy": right[arm]} for arm in arms}
    for arm in arms if areas["real"][0] is not None else ():
        values[arm]["auroc"] = torch.stack(areas[arm])
    present = {name: labels == k for k, name in enumerate(names) if (labels == k).any()}
    figures: dict[str, Any] = {
        arm: {key: entry(crossed_interval(each, bounds=(0.0, 1.0)), each.shape[1]) for key, each in values[arm].items()}
        | {
            "recall": {
                name: entry(crossed_interval(right[arm][:, which], bounds=(0.0, 1.0)), int(which.sum()))
                for name, which in present.items()
            }
        }
        for arm in arms
    }
    differences: dict[str, Any] = {}
    for arm in list(arms)[1:]:
        differences[arm] = {}
        for key, each in values[arm].items():
            found, p = paired_difference(each, values["real"][key], bounds=(-1.0, 1.0))
            differences[arm][key] = entry(found, each.shape[1]) | {"p": p}
    tried = [arm for arm in WITH_SYNTHETIC if arm in figures]
    best = max(tried, key=lambda arm: figures[arm]["accuracy"]["value"])
    return {"arms": figures, "differences": differences, "best": best, "tried": len(tried)}


def right_of(given: Tensor, labels: Tensor) -> Tensor:
    """Whether probabilities (S, N, K) are highest for the label: float64 (S, N)."""
    return (given.argmax(2) == labels).double()


def not_scored(labels: Tensor, names: Sequence[str]) -> dict[str, str]:
    """Why there are figures that cannot be taken of these test labels."""
    counts = labels.bincount(minlength=len(names)).tolist()
    reasons = {f"recall: {name}": "no test image" for name, count in zip(names, counts, strict=True) if count == 0}
    if max(counts) == len(labels):
        return reasons | {"auroc": "all test images are of one class"}
    return reasons | ({"auroc": "the mean over the classes that the test split has"} if reasons else {})


def write_cases(path: Path, labels: Tensor, given: Given) -> None:
    """One row for each test image: place, label, and for the arms of each budget the share of seeds that were right."""
    columns = {
        f"{budget} {arm}": right_of(each, labels).mean(0)
        for budget, arms in given.items()
        for arm, each in arms.items()
    }
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "label", *columns])
        for i, label in enumerate(labels.tolist()):
            rows.writerow([i, label, *(f"{float(shares[i]):.4g}" for shares in columns.values())])


def verdict(budget: str, found: Mapping[str, Any]) -> str:
    """Whether synthetic images help under this budget, as one sentence."""
    best = found["best"]
    change, accuracy = found["differences"][best]["accuracy"], found["arms"][best]["accuracy"]["value"]
    # Bonferroni: the best of so many arms was chosen by the same figures.
    p = min(1.0, found["tried"] * change["p"])
    said = "makes no sure difference" if p >= 0.05 else "helps" if change["value"] > 0 else "hurts"
    return (
        f"{labels_a_class(budget)}: synthetic data {said}: {best} {accuracy:.3f}, real "
        f"{found['arms']['real']['accuracy']['value']:.3f}, {change['value']:+.3f} "
        f"({change['low']:+.3f} to {change['high']:+.3f}; p {p_text(p)}, corrected for the choice of the best)"
    )


def labels_a_class(budget: str) -> str:
    return "all labels" if budget == "all" else f"{budget} label{'s' * (budget != '1')} a class"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def report(metrics: Mapping[str, Any]) -> None:
    """The figures as a table, what was left out, and a sentence for each budget."""
    log.info("%-20s %-28s %-8s %s", "", "accuracy (95% interval)", "AUROC", "accuracy minus that of real (p)")
    for budget, found in metrics["budgets"].items():
        log.info("%s, %d real images", labels_a_class(budget), found["images"]["real"])
        for arm, figures in found["arms"].items():
            accuracy, area = figures["accuracy"], figures.get("auroc")
            line = f"  {arm:20}{accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})"
            line = f"{line:51}{'-' if area is None else format(area['value'], '.3f'):9}"
            if arm in found["differences"]:
                change = found["differences"][arm]["accuracy"]
                line += (
                    f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f}), p {p_text(change['p'])}"
                )
            log.info("%s", line.rstrip())
    for name, reason in metrics["left_out"].items():
        log.info("note: %s: %s", name, reason)
    for budget, found in metrics["budgets"].items():
        log.info("%s", verdict(budget, found))
