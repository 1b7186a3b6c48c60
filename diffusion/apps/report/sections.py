"""What the page says of each task's results, where they are there and can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from diffusion.apps.report import charts, pictures, tables
from diffusion.apps.report.results import Part
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.runs import Run

log = logging.getLogger("diffusion")


def read(part: Part, build: Callable[[Part], dict[str, Any]], weights: str | None) -> dict[str, Any] | None:
    """What the page shows of a task's results; None where they are not there, or not what the task writes.

    `weights` is the fingerprint of those that the page's own samples come from: a note says where they are others.
    """
    if part.found is None:
        return None
    try:
        return build(part) | {"note": other_weights(part.found.get("receipt"), weights)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        part.damaged("metrics.json", error)
        return None


def other_weights(receipt: dict[str, Any] | None, weights: str | None) -> str | None:
    """A sentence, where figures are of other weights than these."""
    generated = (receipt or {}).get("generated") or {}
    if weights is None or generated.get("weights") in (None, weights):
        return None
    return f"These figures are of other weights than the samples above: those of step {generated.get('step'):,}."


def evaluation_of(part: Part) -> dict[str, Any]:
    found = part.found
    metrics, classes = found["metrics"], found.get("classes") or {}
    titles, rows = tables.class_table(classes)
    planes = [
        charts.plane("precision-recall", "recall", "precision", metrics, classes),
        charts.plane("density-coverage", "coverage", "density", metrics, classes),
    ]
    name = found["receipt"]["extractor"]["name"]
    return {
        "caption": f"{found['n']:,} generated images, compared by features of the extractor {name}. The floor is what "
        "real images of another split score in place of generated ones: a model can hardly be better. In "
        "the drawing, with a stroke at 0, the figure is above, the floor, hollow, below. n images are held against m "
        "real ones.",
        "rows": tables.metric_rows(metrics),
        "class_titles": titles,
        "class_rows": rows,
        "charts": [drawn for drawn in planes if drawn],
        "left_out": tables.left_out(found),
        "badge": tables.quality_badge(metrics),
    }


def audit_of(part: Part) -> dict[str, Any]:
    found, drawings, problem = part.found, [], None
    try:
        generated, held_out = part.cases("cases.csv"), part.cases("held_out.csv")
        for kind in ("pixel", "feature"):
            ratios = [
                [float(text) for text in cases.get(f"{kind}_ratio", []) if text] for cases in (generated, held_out)
            ]
            drawings.append(charts.ratios(kind, *ratios, (found.get(kind) or {}).get("threshold")))
    except (ValueError, OSError) as error:
        problem = f"{part.folder} holds a table of cases that is damaged: {' '.join(str(error).split())}"
        log.warning("%s", problem)
    alt = "The generated images nearest to training images, each beside its nearest training image"
    pairs = pictures.from_file(part.folder / "pairs.png", alt)
    return {
        "sentence": tables.audit_sentence(found),
        "rows": tables.audit_rows(found),
        "charts": [drawn for drawn in drawings if drawn],
        "pairs": pairs,
        "problem": problem,
        "left_out": tables.left_out(found),
        "badge": tables.audit_badge(found),
    }


def utility_of(part: Part) -> dict[str, Any]:
    found = part.found
    budgets = found["budgets"]
    metrics, rows = tables.difference_table(budgets)
    drawings = [charts.accuracies(budgets, found["arms"], metric) for metric in ("accuracy", "auroc")]
    return {
        "caption": f"A classifier is trained {found['seeds']} times for {found['steps']:,} steps on each mixture of "
        f"real images and {found['n']:,} synthetic ones, and judged on real test images.",
        "remark": found.get("note"),
        "sentences": tables.utility_sentences(budgets),
        "metrics": metrics,
        "rows": rows,
        "charts": [drawn for drawn in drawings if drawn],
        "left_out": tables.left_out(found),
    }


def reconstruction_of(part: Part) -> dict[str, Any]:
    alt = "Test images, what the codec gives back of them, and the difference"
    picture = pictures.from_file(part.folder / "reconstructions.png", alt)
    return {
        "rows": tables.reconstruction_rows(part.found),
        "picture": picture,
        "left_out": tables.left_out(part.found),
    }


def losses_of(run: Run) -> dict[str, Any]:
    """Charts of metrics.csv; a damaged one is named."""
    path = run.directory / "metrics.csv"
    try:
        rows = read_rows(path)
        found = charts.losses(rows)
        steps, values = charts.curve(rows, "val/loss")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{path} is damaged ({' '.join(str(error).split())})"
        log.warning("%s", problem)
        return {"problem": problem}
    said = "Not validated yet."
    if steps:
        best = min(range(len(values)), key=values.__getitem__)
        said = f"Validation loss of the averaged weights at step {steps[-1]:,}: {values[-1]:.3g}; "
        said += f"lowest {values[best]:.3g} at step {steps[best]:,}."
    return {"problem": None, "charts": found, "sentence": said}
