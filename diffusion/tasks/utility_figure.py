"""The figure of `python -m diffusion utility`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {
    "real": "black",
    "augmented": "tab:gray",
    "synthetic": "tab:orange",
    "both": "tab:blue",
    "synthetic_then_real": "tab:green",
    "variants": "tab:purple",
    "variants_augmented": "tab:red",
}
WIDTH = 0.8
"""Of all arms of a budget together; the distance of two budgets is 1."""


def save_figure(budgets: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracies with their intervals, above their differences from real images alone with p values; one PNG.

    budgets: as in the section of that name in metrics.json.
    """
    from matplotlib.figure import Figure

    arms = list(next(iter(budgets.values()))["arms"])
    canvas = Figure(figsize=(max(10, 0.5 * len(arms) * len(budgets)), 7.5), layout="constrained")
    top, bottom = canvas.subplots(2, 1, sharex=True)
    for place, found in enumerate(budgets.values()):
        reference = found["arms"]["real"]["accuracy"]["value"]
        top.hlines(reference, place - 0.45, place + 0.45, color="black", linewidth=1, linestyle=":")
        bottom.hlines(0, place - 0.45, place + 0.45, color="black", linewidth=1, linestyle=":")
        for k, arm in enumerate(arms):
            x, colour = place + WIDTH * (k - (len(arms) - 1) / 2) / len(arms), COLOURS[arm]
            label = arm.replace("_", " ") if place == 0 else None
            whisker(top, x, found["arms"][arm]["accuracy"], colour, label)
            if arm in found["differences"]:
                change = found["differences"][arm]["accuracy"]
                whisker(bottom, x, change, colour)
                p = "p < .001" if change["p"] < 0.001 else f"p {change['p']:.3f}".replace("0.", ".")
                bottom.annotate(
                    p, (x, change["high"]), (0, 4), textcoords="offset points", ha="center", fontsize=8, color=colour
                )
    top.set_ylabel("accuracy on real test images")
    top.set_title("Dots: means over seeds and test images; whiskers: 95 % intervals over both", fontsize=10, loc="left")
    bottom.set_ylabel("accuracy minus that of real alone")
    bottom.set_title("Above 0: better than the same real images alone (paired test)", fontsize=10, loc="left")
    bottom.set_xticks(
        range(len(budgets)),
        [
            f"{'all' if name == 'all' else f'{name} a class'}\n{found['images']['real']} real, "
            f"{found['images']['synthetic']} synthetic"
            for name, found in budgets.items()
        ],
    )
    bottom.set_xlim(-0.5, len(budgets) - 0.5)
    bottom.margins(y=0.12)
    for axes in (top, bottom):
        axes.grid(axis="y", alpha=0.3)
        for place in range(1, len(budgets)):
            axes.axvline(place - 0.5, color="lightgray", linewidth=0.8)
    canvas.legend(loc="outside upper center", ncols=len(arms), frameon=False)
    canvas.savefig(path, dpi=100)


def whisker(axes: Any, x: float, found: Mapping[str, float], colour: str, label: str | None = None) -> None:
    """A dot at the value, with a line from the low end to the high one."""
    below, above = found["value"] - found["low"], found["high"] - found["value"]
    axes.errorbar(x, found["value"], [[below], [above]], fmt="o", color=colour, capsize=4, markersize=5, label=label)
