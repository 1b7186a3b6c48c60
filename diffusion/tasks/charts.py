"""Charts of figures with their intervals, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

GENERATED, REAL = "tab:blue", "tab:gray"
TITLES = {
    "fid": "Fréchet distance (fid)",
    "kid": "kernel distance (kid)",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "sliced_wasserstein": "sliced Wasserstein (pixels)",
    "inception_score": "inception score",
    "label_accuracy": "read as the class asked for",
    "grade_error": "grades away from what was asked",
    "ms_ssim": "MS-SSIM within classes",
}
BETTER = {"fid": "lower", "kid": "lower", "sliced_wasserstein": "lower", "ms_ssim": "as real", "grade_error": "lower"}


def save_metrics(metrics: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One panel a metric: generated images against each split, and beside them real images in their place.

    metrics: as evaluate writes them, metric -> reference or set -> value, low, high (and floor).
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(5, len(metrics))
    rows = -(-len(metrics) // columns)
    canvas = Figure(figsize=(2.6 * columns, 0.5 + 2.5 * rows), layout="constrained")
    panels = canvas.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(metrics) :]:
        axes.remove()
    for axes, (name, figures) in zip(panels, metrics.items(), strict=False):
        points = _points(figures)
        for place, (_, figure, color) in enumerate(points):
            errors = [[figure["value"] - figure["low"]], [figure["high"] - figure["value"]]]
            axes.errorbar(place, figure["value"], errors, fmt="o", color=color, capsize=3, markersize=5)
        axes.set_xticks(range(len(points)), [label for label, _, _ in points], fontsize=7)
        axes.set_xlim(-0.6, len(points) - 0.4)
        better = BETTER.get(name, "higher")
        axes.set_title(
            f"{TITLES.get(name, name)}\n({better} is better)"
            if better != "as real"
            else f"{TITLES.get(name, name)}\n(best as in real images)",
            fontsize=8,
        )
        axes.tick_params(axis="y", labelsize=7)
        axes.grid(axis="y", alpha=0.3)
        axes.margins(y=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    keys = {"generated": GENERATED, "real images in their place": REAL}
    handles = [Line2D([], [], marker="o", linestyle="", color=color) for color in keys.values()]
    canvas.legend(handles, list(keys), loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    canvas.savefig(path, dpi=120)


def _points(figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float], str]]:
    """What is drawn of one metric: label, figure, colour."""
    if "generated" in figures:
        return [(part, figure, GENERATED if part == "generated" else REAL) for part, figure in figures.items()]
    points = []
    for reference, figure in figures.items():
        points.append((f"to {reference}", figure, GENERATED))
        if figure.get("floor"):
            points.append((f"to {reference}\n(real)", figure["floor"], REAL))
    return points
