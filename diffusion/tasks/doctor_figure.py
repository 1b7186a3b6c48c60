"""What is known of a data set before training, as one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from diffusion.tasks.pictures import enlargement, flat, tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}
MOST_ROWS = 12
SHOWN_PAIRS = 6
WIDTH, SAMPLES_WIDTH, TALLEST, SMALLEST = 11.0, 5.6, 0.68, 0.44
"""Inches: of the figure, of a row of samples, and sides of a sample where there are few classes and many."""
LONGEST = 30
"""Letters of a name in the figure; longer ones lose their beginning."""


class Pair(NamedTuple):
    """Two images (C, *S) that are alike, what they are called, and how alike they are."""

    images: tuple[Tensor, Tensor]
    names: tuple[str, str]
    title: str


def save_figure(
    title: str,
    samples: Mapping[str, Tensor],
    counts: Mapping[str, Mapping[str, int]],
    values: tuple[Sequence[float], Sequence[float]],
    losses: Sequence[float],
    pairs: Sequence[Pair],
    path: Path,
) -> None:
    """Samples of each class, how many there are, the histogram of the values, the loss of one batch, duplicates.

    samples: class -> images uint8 (n, C, *S). counts: class -> split -> images. values: middles of intervals, and
    their shares. What there is nothing of has a panel that says so.
    """
    from matplotlib.figure import Figure

    samples = dict(list(samples.items())[:MOST_ROWS])
    side = TALLEST if len(samples) <= 4 else SMALLEST
    samples = {label: some[: int(SAMPLES_WIDTH / side)] for label, some in samples.items()}
    top, middle, bottom = max(2.0, (side + 0.08) * len(samples)), 2.3, 1.75 if pairs else 0.0
    canvas = Figure(figsize=(WIDTH, top + middle + bottom + 0.35), layout="constrained")
    canvas.suptitle(title, fontsize=10)
    heights = [top, middle, *([bottom] if pairs else [])]
    rows = np.atleast_1d(canvas.subfigures(len(heights), 1, height_ratios=heights))
    left, right = rows[0].subfigures(1, 2, width_ratios=[SAMPLES_WIDTH + 1.2, WIDTH - SAMPLES_WIDTH - 1.2])
    _draw_samples(left, samples)
    _draw_counts(right.subplots(), counts)
    histogram, curve = rows[1].subplots(1, 2)
    _draw_values(histogram, *values)
    _draw_losses(curve, losses)
    if pairs:
        _draw_pairs(rows[2], pairs[:SHOWN_PAIRS])
    canvas.savefig(path, dpi=110)


def _draw_samples(figure: SubFigure, samples: Mapping[str, Tensor]) -> None:
    if not samples:
        _nothing(figure.subplots(), "no image can be read")
        return
    grid = figure.subplots(len(samples), 1, squeeze=False)[:, 0]
    for axes, (label, images) in zip(grid, samples.items(), strict=True):
        axes.imshow(tile(images, len(images), enlargement(images, len(images), 640)), interpolation="nearest")
        axes.set_ylabel(shortened(label, 18), rotation=0, ha="right", va="center", fontsize=8)
        _bare(axes)
        axes.set_anchor("W")


def _draw_counts(axes: Axes, counts: Mapping[str, Mapping[str, int]]) -> None:
    if not counts:
        _nothing(axes, "no labels")
        return
    labels = list(counts)
    place, start = np.arange(len(labels)), np.zeros(len(labels))
    for split, color in COLORS.items():
        values = np.array([counts[label].get(split, 0) for label in labels])
        axes.barh(place, values, left=start, color=color, label=split, height=0.75)
        start = start + values
    named = place if len(labels) <= 2 * MOST_ROWS else place[:: -(-len(labels) // (2 * MOST_ROWS))]
    axes.set_yticks(named, [shortened(labels[k], 18) for k in named], fontsize=7 if len(labels) > MOST_ROWS else 8)
    axes.invert_yaxis()
    axes.set_title("images of each class", fontsize=9, loc="left")
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    _plain(axes)


def _draw_values(axes: Axes, middles: Sequence[float], shares: Sequence[float]) -> None:
    from matplotlib.ticker import NullFormatter

    axes.set_title("values (share, logarithmic)", fontsize=9, loc="left")
    if not len(middles):
        _nothing(axes, "no image can be read")
        return
    axes.bar(middles, shares, width=middles[1] - middles[0], color="tab:gray")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("grey level", fontsize=8)
    _plain(axes)


def _draw_losses(axes: Axes, losses: Sequence[float]) -> None:
    axes.set_title("loss while one batch is learnt by heart", fontsize=9, loc="left")
    if not losses:
        _nothing(axes, "no step could be made")
        return
    axes.plot(np.arange(len(losses)), losses, color="tab:blue")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step", fontsize=8)
    _plain(axes)


def _draw_pairs(figure: SubFigure, pairs: Sequence[Pair]) -> None:
    grid = figure.subplots(1, SHOWN_PAIRS, squeeze=False)[0]
    for axes, pair in zip(grid, pairs, strict=False):
        images = [flat(image[None]) for image in pair.images]
        axes.imshow(np.concatenate([tile(each, 1, enlargement(each, 2, 400)) for each in images], 1))
        axes.set_title(pair.title, fontsize=7)
        axes.set_xlabel("\n".join(shortened(name, LONGEST) for name in pair.names), fontsize=6)
        _bare(axes)
    for axes in grid[len(pairs) :]:
        axes.set_axis_off()


def shortened(text: str, most: int) -> str:
    """The end of a text that is too long: there file names differ."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _nothing(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=9, color="gray", transform=axes.transAxes)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=7)
    axes.grid(axis="both", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
