"""What denoising makes of images, side by side, and how near it comes, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.tasks.pictures import flat

TITLES = {
    "original": "original",
    "noisy": "noisy",
    "tv": "total variation",
    "nlm": "non-local means",
    "mean": "posterior mean",
    "sample": "one sample",
    "average": "mean of samples",
    "spread": "spread of samples",
}
COLOURS = {
    "noisy": "tab:gray",
    "tv": "tab:green",
    "nlm": "tab:orange",
    "mean": "tab:blue",
    "sample": "tab:purple",
    "average": "tab:cyan",
}
SIDE = 1.35
"""Inches of a picture."""


class Row(NamedTuple):
    """One image: its noise, and by method its picture uint8 (C, *S) and a line below it; spread float32 (*S)."""

    level: float
    pictures: Mapping[str, Tensor]
    captions: Mapping[str, str]
    spread: Tensor | None = None


def save_rows(rows: Sequence[Row], path: Path) -> None:
    """A row for each image, a column for each method; spreads as a heat map, on one scale for rows of one level."""
    from matplotlib.figure import Figure

    columns = [name for name in TITLES if name in rows[0].pictures]
    spreads = rows[0].spread is not None
    count = len(columns) + spreads
    canvas = Figure(
        figsize=(0.7 + SIDE * count + 0.6 * spreads, 0.35 + len(rows) * (SIDE + 0.22)), layout="constrained"
    )
    grid = canvas.subplots(len(rows), count, squeeze=False)
    for place, (row, line) in enumerate(zip(rows, grid, strict=True)):
        for axes, name in zip(line, columns, strict=False):
            picture = flat(row.pictures[name][None])[0].permute(1, 2, 0).expand(-1, -1, 3)
            axes.imshow(picture.numpy(), interpolation="nearest")
            axes.set_xlabel(row.captions.get(name, ""), fontsize=8)
        if spreads:
            most = max(float(other.spread.max()) for other in rows if other.level == row.level)
            heat = line[-1].imshow(
                _plane(row.spread), cmap="magma", vmin=0, vmax=max(most, 1e-6), interpolation="nearest"
            )
            bar = canvas.colorbar(heat, ax=line[-1], fraction=0.046, pad=0.04)
            bar.ax.tick_params(labelsize=7)
        for axes, name in zip(line, [*columns, "spread"], strict=False):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if place == 0:
                axes.set_title(TITLES[name], fontsize=9)
        line[0].set_ylabel(f"noise {row.level:.3g}", fontsize=9)
    canvas.savefig(path, dpi=110)


def save_figures(levels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], path: Path) -> None:
    """PSNR and, where there is one, SSIM of each method at each level, with their intervals.

    levels: noise level -> method -> figure -> value, low, high.
    """
    from matplotlib.figure import Figure

    names = [name for name in ("psnr", "ssim") if name in next(iter(next(iter(levels.values())).values()))]
    canvas = Figure(figsize=(4.8 * len(names), 3.8), layout="constrained")
    for axes, figure in zip(canvas.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        methods = [name for name in COLOURS if name in next(iter(levels.values()))]
        for place, name in enumerate(methods):
            x = np.arange(len(levels)) + 0.09 * (place - (len(methods) - 1) / 2)
            found = [methods_of[name][figure] for methods_of in levels.values()]
            values = np.array([each["value"] for each in found])
            errors = [values - [each["low"] for each in found], [each["high"] for each in found] - values]
            axes.errorbar(x, values, errors, fmt="o-", color=COLOURS[name], capsize=3, markersize=4, linewidth=1,
                          label=TITLES[name] if figure == names[0] else None)  # fmt: skip
        axes.set_xticks(range(len(levels)), list(levels))
        axes.set_xlabel("noise (standard deviation, images in [-1, 1])", fontsize=9)
        axes.set_title({"psnr": "PSNR in dB", "ssim": "SSIM"}[figure] + ", with 95 % intervals", fontsize=9, loc="left")
        axes.grid(axis="y", alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside upper center", ncols=3 * len(names), fontsize=8, frameon=False)
    canvas.savefig(path, dpi=110)


def _plane(values: Tensor) -> np.ndarray:
    """The middle slice of a volume (D, H, W); an image (H, W) as it is."""
    return (values[len(values) // 2] if values.ndim == 3 else values).to(torch.float32).numpy()
