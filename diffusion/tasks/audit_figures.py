"""What an audit found, as PNG: the samples nearest to training images, and all ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from diffusion.tasks.pictures import flat

COLUMNS = 10
FLAGGED, SAMPLES, HELD_OUT = "tab:red", "tab:blue", "tab:gray"


def save_pairs(
    rows: Mapping[str, tuple[Tensor, Sequence[str]]], captions: Sequence[str], flagged: Sequence[bool], path: Path
) -> None:
    """A column for each sample: itself and its neighbours, in a row for each name; at most `COLUMNS` side by side.

    rows: name -> images uint8 (n, C, *S) and a line about each. captions: what stands above each column, in red where
    it is flagged.
    """
    from matplotlib.figure import Figure

    count, columns = len(captions), min(COLUMNS, len(captions))
    blocks = -(-count // columns)
    canvas = Figure(figsize=(1.2 + 1.15 * columns, 0.3 + blocks * (0.5 + 1.4 * len(rows))), layout="constrained")
    grid = canvas.subplots(blocks * len(rows), columns, squeeze=False)
    for axes in grid.flatten():
        axes.set_axis_off()
    for row, (name, (images, lines)) in enumerate(rows.items()):
        for i, image in enumerate(flat(images)):
            axes = grid[i // columns * len(rows) + row, i % columns]
            axes.set_axis_on()
            axes.set_xticks([])
            axes.set_yticks([])
            axes.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
            axes.set_xlabel(lines[i], fontsize=7)
            if row == 0:
                axes.set_title(captions[i], fontsize=8, color=FLAGGED if flagged[i] else "black")
            if i % columns == 0:
                axes.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    canvas.suptitle("distance ratio over its threshold; below 1 is a copy", fontsize=9)
    canvas.savefig(path, dpi=120)


def save_ratios(spaces: Mapping[str, tuple[np.ndarray, np.ndarray, float]], path: Path) -> None:
    """Histograms of the ratios of samples and of held-out images beside each other, with the threshold.

    spaces: name -> ratios of the samples (N,), of held-out images (M,), threshold. What is beyond the last edge is in
    the last bin.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5 * len(spaces), 3.6), layout="constrained")
    for axes, (name, (samples, held_out, threshold)) in zip(
        canvas.subplots(1, len(spaces), squeeze=False)[0], spaces.items(), strict=True
    ):
        finite = [each[np.isfinite(each)] for each in (samples, held_out)]
        last = max([threshold, *(float(np.quantile(each, 0.98)) for each in finite if len(each))]) * 1.05 or 1.0
        edges = np.linspace(0, min(last, 3.0), 51)
        for ratios, label, color in ((samples, "samples", SAMPLES), (held_out, "held-out images", HELD_OUT)):
            shares = np.full(len(ratios), 1 / len(ratios))
            axes.hist(np.minimum(ratios, edges[-1]), edges, weights=shares, color=color, alpha=0.55, label=label)
        axes.axvline(threshold, color=FLAGGED, linestyle="--", label=f"threshold {threshold:.2f}")
        axes.set_title(f"{name} distance", fontsize=10)
        axes.set_xlabel("to the nearest training / held-out image (last bar: all beyond)", fontsize=8)
        axes.set_ylabel("share of images", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    canvas.savefig(path, dpi=120)
