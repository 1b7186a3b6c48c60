"""The picture of a search for what is not normal: images, what a model makes of them, maps, and ROC curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.tasks.pictures import enlargement, flat, tile
from diffusion.tasks.reconstruct import evenly_spaced

COLORS = ("tab:red", "tab:blue", "tab:gray")
BRIGHTEST = 0.995
"""The quantile of all maps shown that is as bright as can be."""


def save_anomalies(
    images: Tensor,
    rebuilt: Tensor,
    maps: Tensor,
    scores: Mapping[str, Tensor],
    every_map: Mapping[str, Tensor],
    anomalous: Tensor | None,
    lesions: Tensor | None,
    shown: int,
    title: str,
    path: Path,
) -> None:
    """Rows of normal and of other images with their maps, evenly spaced; beside them ROC curves; one PNG.

    images, rebuilt uint8 (N, C, *S); maps (N, *S), and those of every method in every_map; scores (N,) of each method;
    anomalous bool (N,), or None: then those of the lowest and the highest scores are shown, and how these are spread;
    lesions bool (N, *S), or None. title: what `rebuilt` is.
    """
    from matplotlib.figure import Figure

    first = next(iter(scores.values()))
    if anomalous is None:
        order = first.argsort()
        groups = {"lowest scores": order[:shown], "highest scores": order.flip(0)[:shown]}
    else:
        kinds = {"normal": (~anomalous).nonzero()[:, 0], "not normal": anomalous.nonzero()[:, 0]}
        groups = {name: rows[evenly_spaced(len(rows), shown)] for name, rows in kinds.items()}
    maps = _planes(maps)
    bright = float(torch.quantile(torch.cat([maps[rows].flatten() for rows in groups.values()])[: 1 << 24], BRIGHTEST))
    blocks = {}
    for name, rows in groups.items():
        block = {"image": flat(images[rows]), title: flat(rebuilt[rows]), "map": coloured(maps[rows], bright)}
        if lesions is not None and lesions[rows].any():
            block["true lesion"] = _planes(lesions[rows]).to(torch.uint8)[:, None] * 255
        blocks[name] = block
    curves = 1 + (anomalous is not None and lesions is not None and bool(lesions.any()))
    rows = [len(block) for block in blocks.values()]
    canvas = Figure(figsize=(13, 0.5 + 0.95 * sum(rows)), layout="constrained")
    left, right = canvas.subfigures(1, 2, width_ratios=(2.4, 1))
    for axes, (name, block) in zip(left.subplots(len(blocks), 1, height_ratios=rows), blocks.items(), strict=True):
        _show(axes, name, block, shown)
    panels = right.subplots(curves, 1, squeeze=False)[:, 0]
    if anomalous is None:
        _spread(panels[0], first)
    else:
        _curves(panels[0], "images", scores, anomalous)
    if curves == 2:
        _curves(panels[1], "pixels", every_map, lesions)
    canvas.savefig(path, dpi=110, bbox_inches="tight")


def coloured(maps: Tensor, bright: float) -> Tensor:
    """Maps (N, H, W) as pictures uint8 (N, 3, H, W), black at 0, and as bright as can be from `bright` on."""
    from matplotlib import colormaps

    values = (maps / max(bright, torch.finfo(torch.float32).tiny)).clamp(0, 1).numpy()
    return torch.from_numpy(colormaps["inferno"](values, bytes=True)[..., :3].copy()).movedim(-1, 1)


def _planes(maps: Tensor) -> Tensor:
    """Maps (N, H, W) as they are, of volumes the middle slice, as `flat` shows these."""
    return maps[:, maps.shape[1] // 2] if maps.ndim == 4 else maps


def _show(axes: Any, name: str, block: Mapping[str, Tensor], columns: int) -> None:
    pictures = []
    for row in block.values():
        row = row.expand(-1, 3, -1, -1)
        filler = torch.full((columns - len(row), *row.shape[1:]), 255, dtype=torch.uint8)
        pictures.append(torch.cat([row, filler]))
    picture = tile(torch.cat(pictures), columns, enlargement(pictures[0], columns))
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(name, fontsize=10, loc="left")
    axes.set_xticks([])
    height = picture.shape[0] / len(block)
    axes.set_yticks([height * (row + 0.5) for row in range(len(block))], list(block), fontsize=8)
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)


def _curves(axes: Any, what: str, scores: Mapping[str, Tensor], truth: Tensor) -> None:
    from sklearn.metrics import auc, roc_curve

    for (method, values), color in zip(scores.items(), COLORS, strict=False):
        wrong, right, _ = roc_curve(truth.flatten().numpy(), values.flatten().numpy())
        axes.plot(wrong, right, color=color, linewidth=1.6, label=f"{method}: {auc(wrong, right):.3f}")
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.6, linestyle=":")
    axes.set_xlabel(f"normal {what} called not normal", fontsize=8)
    axes.set_ylabel("others that are found", fontsize=8)
    axes.set_title(f"{what}: area under the ROC curve", fontsize=9)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    _plain(axes)


def _spread(axes: Any, scores: Tensor) -> None:
    axes.hist(scores.numpy(), bins=min(30, max(6, len(scores) // 6)), color=COLORS[0], alpha=0.6)
    axes.set_xlabel("score (normal validation images have 1 on average over their maps)", fontsize=8)
    axes.set_ylabel("images", fontsize=8)
    axes.set_title(f"{len(scores)} images", fontsize=9)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
