"""figures/loss.png, drawn from metrics.csv."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from diffusion.callbacks.metrics_csv import read_rows

TITLES = {"val/psnr": "validation PSNR in dB", "val/dice": "validation Dice, mean of the classes but 0"}


class LossFigure(pl.Callback):
    """Draws the curves anew after each validation; the last one comes at the end of the run."""

    def __init__(self, metrics: Path, figure: Path):
        self.metrics, self.figure = metrics, figure

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            draw_losses(self.metrics, self.figure)


def draw_losses(metrics: Path, figure: Path) -> None:
    """A PNG of training and validation loss over steps, and what else the module logs.

    The loss by noise level, a classifier's accuracy by noise level, an autoencoder's PSNR, or a segmenter's Dice.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = read_rows(metrics)

    def curve(name: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        return [step for step, _ in points], [value for _, value in points]

    canvas = Figure(figsize=(10, 4))
    # All places are fixed: to measure the labels takes longer than a step of a small network.
    canvas.subplots_adjust(left=0.07, right=0.985, bottom=0.13, top=0.92, wspace=0.16)
    total, right = canvas.subplots(1, 2)
    total.plot(*curve("train/loss"), color="tab:gray", alpha=0.7, label="training")
    total.plot(*curve("val/loss"), color="tab:blue", marker="o", markersize=3, label="validation (averaged weights)")
    total.set_title("loss", y=1)
    total.legend()
    total.set_yscale("log")
    figure_of_merit = next((name for name in TITLES if any(row.get(name) for row in rows)), None)
    if figure_of_merit:
        right.plot(*curve(figure_of_merit), marker="o", markersize=3)
        right.set_title(f"{TITLES[figure_of_merit]} (averaged weights)", y=1)
    else:
        levels = {name for row in rows for name in row if "_by_noise/" in name}
        for name in sorted(levels, key=by_noise):
            label = name.split("log_snr_")[1].replace("_", " ")
            right.plot(*curve(name), marker="o", markersize=3, label=label)
        what = "accuracy" if any(name.startswith("accuracy") for name in levels) else "loss"
        right.set_title(f"validation {what} by noise level", y=1)
        right.set_yscale("log" if what == "loss" else "linear")
        if right.lines:
            right.legend(title="log-SNR")
    for axes in (total, right):
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
    figure.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(figure, dpi=120)


def by_noise(name: str) -> tuple[int, float]:
    """A key that sorts the columns of loss_by_noise from the most noise to the least."""
    words = name.split("log_snr_")[1].split("_")
    order = {"below": 0, "above": 2}.get(words[0], 1)
    return order, float(words[0]) if order == 1 else 0.0
