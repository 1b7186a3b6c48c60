"""Where the steps of grids lie, and how far each grid is from a fine one, as one PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

COLORS = ("tab:blue", "tab:orange", "tab:gray", "tab:green")


def save_grids(title: str, grids: Mapping[str, Sequence[float]], errors: Mapping[str, float], path: Path) -> None:
    """grids: name -> log-SNRs. errors: the distance of some of them, by the same names; the others are shown alone."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9.0, 1.3 + 0.45 * len(grids)), layout="constrained")
    canvas.suptitle(title, fontsize=10)
    left, right = canvas.subplots(1, 2, width_ratios=[3, 1], sharey=True)
    for row, (name, levels) in enumerate(grids.items()):
        color = COLORS[row % len(COLORS)]
        left.plot(levels, [row] * len(levels), "|", color=color, markersize=14, markeredgewidth=2)
        if name in errors:
            right.barh(row, errors[name], height=0.5, color=color)
            right.annotate(f" {errors[name]:.3g}", (errors[name], row), va="center", fontsize=8)
        else:
            right.annotate(" for comparison", (0, row), va="center", fontsize=8, color="gray")
    left.set_yticks(range(len(grids)), list(grids), fontsize=9)
    left.set_ylim(len(grids) - 0.5, -0.5)
    left.set_xlabel("log-SNR (the last step goes on to the data)", fontsize=8)
    top = left.secondary_xaxis("top")
    low, high = left.get_xlim()
    marks = [k for k in range(-4, 5) if low < -2 * k * math.log(10) < high]
    top.set_xticks([-2 * k * math.log(10) for k in marks], [f"{10.0**k:g}" for k in marks])
    top.set_xlabel("sigma / alpha", fontsize=8)
    top.tick_params(labelsize=8)
    right.set_xlabel("RMS distance of images from the reference's", fontsize=8)
    right.margins(x=0.3)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(axes is left)
    canvas.savefig(path, dpi=120)
