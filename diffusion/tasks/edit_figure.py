"""Images and what became of them: a row for each image, a named column for each version, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion.tasks.pictures import flat

WIDTH = 1.25
"""Inches of a picture."""
HIDDEN = torch.tensor([255, 205, 60], dtype=torch.float32)
"""The colour of what is hidden, which no stain and no grey level has."""


def save_columns(
    columns: Mapping[str, Tensor], path: Path, captions: Mapping[str, Sequence[str]] | None = None
) -> None:
    """columns: title -> images uint8 (n, C, *S), n the same in all; captions: title -> a line below each image."""
    from matplotlib.figure import Figure

    pictures = {title: _rgb(images) for title, images in columns.items()}
    captions = captions or {}
    rows, (height, width) = len(next(iter(pictures.values()))), next(iter(pictures.values())).shape[1:3]
    tall = WIDTH * height / width + (0.2 if captions else 0.06)
    canvas = Figure(figsize=(WIDTH * len(pictures) + 0.2, 0.45 + rows * tall), layout="constrained")
    canvas.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = canvas.subplots(rows, len(pictures), squeeze=False)
    for column, (title, images) in enumerate(pictures.items()):
        for row, image in enumerate(images):
            axes = grid[row, column]
            axes.imshow(image.numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(title, fontsize=9)
            if title in captions:
                axes.set_xlabel(captions[title][row], fontsize=7, labelpad=1.5)
    canvas.savefig(path, dpi=130)


def veiled(images: Tensor, unknown: Tensor) -> Tensor:
    """Images uint8 (n, C, *S) as pictures (n, 3, *S), in one bright colour where `unknown`, bool (n, 1, *S)."""
    shown = images if images.shape[1] in (1, 3) else images[:, :1]
    shown = shown.expand(-1, 3, *images.shape[2:]).float()
    colour = HIDDEN.view(1, 3, *[1] * (images.ndim - 2))
    return torch.where(unknown.cpu(), colour, shown).to(torch.uint8)


def _rgb(images: Tensor) -> Tensor:
    return flat(images.cpu()).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
