"""The pictures of a segmentation: case by case, and how far its probabilities can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion.metrics.segmentation import Calibration
from diffusion.tasks.pictures import flat

PALETTE = (
    (20, 20, 20),
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
)
"""Of the classes from 0 on, and again from 1 on where there are more: Okabe and Ito 2008, told apart by all eyes."""
WRONG = (214, 39, 40)


def painted(masks: Tensor) -> Tensor:
    """Masks (N, H, W) of class indices as pictures, uint8 (N, 3, H, W)."""
    colours = [colour_of(k) for k in range(int(masks.max()) + 1)]
    return torch.tensor(colours, dtype=torch.uint8)[masks.long()].movedim(-1, 1)


def colour_of(k: int) -> tuple[int, int, int]:
    """The colour of class k in pictures of masks."""
    return PALETTE[(k - 1) % (len(PALETTE) - 1) + 1] if k else PALETTE[0]


def widest(masks: Tensor, *volumes: Tensor) -> tuple[Tensor, ...]:
    """Of volumes (N, ..., D, H, W) the slice where the case's mask (N, D, H, W) is largest; of plane ones all."""
    if masks.ndim == 3:
        return volumes
    chosen = (masks > 0).sum((2, 3)).argmax(1)
    return tuple(volume.movedim(-3, 1)[torch.arange(len(masks)), chosen] for volume in volumes)


def save_cases(
    images: Tensor, truth: Tensor | None, found: Tensor, uncertainty: Tensor, titles: Sequence[str], path: Path
) -> None:
    """A row for each case: image, true mask, mask found, uncertainty, and the pixels that are wrong; one PNG.

    images uint8 (n, C, *S), truth and found (n, *S) of class indices, uncertainty (n, *S) from 0 to 1. Of volumes the
    slice in which the true mask, or without truth the one found, is largest.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    classes = int(max(found.max(), 0 if truth is None else truth.max())) + 1
    images, found, uncertainty, *truths = widest(
        found if truth is None else truth, images, found, uncertainty, *([] if truth is None else [truth])
    )
    masks = {"truth": painted(truths[0])} if truths else {}
    columns = {"image": flat(images), **masks, "found": painted(found), "uncertainty": uncertainty}
    if truths:
        columns["wrong pixels"] = _marked(flat(images), found != truths[0])
    height, width = images.shape[-2:]
    canvas = Figure(figsize=(1.9 * len(columns) + 1.5, 0.5 + 1.9 * len(titles) * height / width), layout="constrained")
    axes = canvas.subplots(len(titles), len(columns), squeeze=False)
    for column, (name, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=11)
        for row, picture in enumerate(pictures):
            if name == "uncertainty":
                shown = axes[row, column].imshow(picture, vmin=0, vmax=1, cmap="magma", interpolation="nearest")
            else:
                colours = picture.expand(3, -1, -1).movedim(0, -1)
                axes[row, column].imshow(colours, interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].spines[:].set_visible(False)
    for row, title in enumerate(titles):
        axes[row, 0].set_ylabel(title, fontsize=9, rotation=0, ha="right", va="center")
    keys = [Patch(color=[value / 255 for value in colour_of(k)], label=f"class {k}") for k in range(1, classes)]
    canvas.legend(handles=keys, loc="outside upper left", ncols=8, fontsize=9, frameon=False)
    bar = canvas.colorbar(shown, ax=axes, location="bottom", fraction=0.04 / len(titles), aspect=60, pad=0.01)
    bar.set_label("uncertainty: entropy of the mean mask, 0 sure to 1 even odds of all classes", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    canvas.savefig(path, dpi=120, bbox_inches="tight")


def _marked(pictures: Tensor, wrong: Tensor) -> Tensor:
    """The pictures (n, 1 or 3, H, W) in pale grey, and in red where they are wrong (n, H, W)."""
    pale = (170 + pictures.float().mean(1, keepdim=True) / 3).to(torch.uint8).expand(-1, 3, -1, -1)
    return torch.where(wrong[:, None], torch.tensor(WRONG, dtype=torch.uint8)[:, None, None], pale)


def save_reliability(
    calibration: Calibration, uncertainty: Tensor, wrong: Tensor, auroc: float | None, path: Path
) -> None:
    """Left how often pixels are foreground that are said to be, right the uncertainty of right and wrong pixels.

    uncertainty (M,) from 0 to 1 and wrong bool (M,) of all pixels.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    some = calibration.count > 0
    left.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle="--", label="as often as said")
    left.plot(calibration.mean[some], calibration.share[some], color="tab:blue", linewidth=1)
    sizes = 12 + 90 * (calibration.count[some] / calibration.count.max()) ** 0.5
    left.scatter(calibration.mean[some], calibration.share[some], sizes, color="tab:blue", zorder=3)
    left.set_title(f"expected calibration error {calibration.error:.4f}", fontsize=10)
    left.set_xlabel("probability of the foreground, mean of a bin", fontsize=9)
    left.set_ylabel("share of its pixels that are foreground", fontsize=9)
    left.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    left.legend(fontsize=8, frameon=False)
    edges = torch.linspace(0, 1, 26).numpy()
    for name, which, color in (("right", ~wrong, "tab:blue"), ("wrong", wrong, "tab:red")):
        count = int(which.sum())
        if count:
            weights = torch.full((count,), 1 / count).numpy()
            label = f"{name} pixels ({count / len(wrong):.2%})"
            right.hist(uncertainty[which].numpy(), bins=edges, weights=weights, color=color, alpha=0.55, label=label)
    known = "no pixel is wrong" if auroc is None else f"AUROC {auroc:.3f}"
    right.set_title(f"uncertainty of right and wrong pixels: {known}", fontsize=10)
    right.set_xlabel("uncertainty", fontsize=9)
    right.set_ylabel("share of the pixels", fontsize=9)
    right.set_yscale("log")
    right.set_ylim(1e-4, 1.5)
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    canvas.savefig(path, dpi=130)
