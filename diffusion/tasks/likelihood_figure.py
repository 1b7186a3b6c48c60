"""The picture of a likelihood: where the bound is spent, and how the images differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

NAMES = {"bound": ("variational bound", "tab:blue"), "flow": ("probability flow", "tab:orange")}


def save_likelihood(log_snr: Tensor, bits: Tensor, cases: Mapping[str, Tensor], path: Path) -> None:
    """Left the bits that the steps cost, as a density over the log-SNR; right a histogram of the images.

    log_snr, bits: of each step, (N,), log_snr rising; cases: "bound" and "flow" -> bits of each image, (n,).
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = canvas.subplots(1, 2)
    width = torch.gradient(log_snr.clamp(-30, 30))[0] if len(log_snr) > 1 else torch.ones(1)
    left.fill_between(log_snr, bits / width, color="tab:blue", alpha=0.25, linewidth=0)
    left.plot(
        log_snr, bits / width, color="tab:blue", linewidth=1.2, marker="o" if len(bits) < 100 else "", markersize=3
    )
    left.set_title(f"where the bound is spent: {bits.sum():.3f} bits per dimension in {len(bits)} steps", fontsize=9)
    left.set_xlabel("log-SNR (noise on the left, data on the right)", fontsize=8)
    left.set_ylabel("bits per dimension and unit of log-SNR", fontsize=8)
    left.set_ylim(bottom=0)
    every = torch.cat([values.double() for values in cases.values()])
    edges = torch.linspace(
        every.min() - 0.01, every.max() + 0.01, min(30, max(6, len(every) // 6)) + 1, dtype=torch.float64
    )
    for name, values in cases.items():
        label, color = NAMES[name]
        mean = values.double().mean().item()
        right.hist(values.numpy(), bins=edges.numpy(), color=color, alpha=0.5, label=label)
        right.axvline(mean, color=color, linewidth=1.5, label=f"mean {mean:.3f}")
    right.set_title(f"{len(values)} image{'s' if len(values) > 1 else ''}", fontsize=9)
    right.set_xlabel("bits per dimension", fontsize=8)
    right.set_ylabel("images", fontsize=8)
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    canvas.savefig(path, dpi=130)
