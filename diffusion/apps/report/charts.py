"""Charts for a page: SVG that takes its colours from the page, so that it is legible on white and on black."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion.apps.report.results import Figure, figures_of, is_figure
from diffusion.callbacks.loss_figure import by_noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
SERIES = ["#010210", "#010211", "#010212", "#010213", "#010214", "#010215"]
"""Colours that stand for those of the page: the ink, and custom properties --series-0 ... --series-5."""
SIZE = (4.7, 3.1)
"""Inches. Narrow, so that letters are still legible where a phone is as wide as the chart."""
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "errorbar.capsize": 0,
} | dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"], INK)


@dataclass
class Chart:
    """An SVG element, and what it shows in sentences, for those who cannot see it."""

    svg: str
    description: str


@contextmanager
def chart(name: str, description: str, size: tuple[float, float] = SIZE) -> Iterator[tuple[Axes, Chart]]:
    """Axes to draw on, and the chart that they become when the block ends; `name` is unique on the page."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.subplots()
        drawn = Chart("", description)
        yield axes, drawn
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn.svg = for_page(file.getvalue(), name, description)


def for_page(text: str, name: str, description: str) -> str:
    """Matplotlib's SVG as an element of a page: ids of its own, the page's colours and letters, and a description."""
    from html import escape

    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--sans)", text)
    text = text.replace(INK, "currentColor")
    for i, colour in enumerate(SERIES):
        text = text.replace(colour, f"var(--series-{i})")
    box = re.search(r'viewBox="([^"]*)"', text).group(1)
    head = f'<svg viewBox="{box}" role="img" aria-label="{escape(description)}"><title>{escape(description)}</title>'
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def losses(rows: Sequence[Mapping[str, str]]) -> list[Chart]:
    """Training and validation loss; loss or accuracy by noise level; PSNR, accuracy, Dice and eval/* columns."""
    charts = []
    training, validation = curve(rows, "train/loss"), curve(rows, "val/loss")
    if training[0] or validation[0]:
        said = "Training loss" + (f", last {training[1][-1]:.3g}" if training[0] else ", none yet")
        said += f", and validation loss, last {validation[1][-1]:.3g}," if validation[0] else ""
        with chart("loss", f"{said} over optimizer steps.") as (axes, drawn):
            axes.plot(*training, color=INK, alpha=0.45, label="training", marker=mark(training))
            axes.plot(*validation, color=SERIES[0], marker="o", label="validation")
            axes.set_title("loss")
            if positive(training) and positive(validation):
                logarithmic(axes)
            finish(axes, "optimizer step")
        charts.append(drawn)
    for what in ("loss", "accuracy"):
        start = f"{what}_by_noise/log_snr_"
        levels = sorted({name for row in rows for name in row if name.startswith(start)}, key=by_noise)
        if levels:
            lines = {name.removeprefix(start).replace("_", " "): curve(rows, name) for name in levels}
            name = "noise" if what == "loss" else f"{what}-noise"
            charts.append(lines_chart(name, f"validation {what} by log-SNR", lines, log=what == "loss"))
    titles = {"val/psnr": "validation PSNR in dB", "val/accuracy": "validation accuracy", "val/dice": "validation Dice"}
    for name in sorted({name for row in rows for name in row if name in titles or name.startswith("eval/")}):
        points = curve(rows, name)
        if points[0]:
            title = titles.get(name, name)
            charts.append(lines_chart(re.sub(r"\W", "-", name), title, {title: points}))
    return charts


def lines_chart(name: str, title: str, lines: Mapping[str, tuple[list[int], list[float]]], log: bool = False) -> Chart:
    """Curves over optimizer steps."""
    last = "; ".join(f"{label}: last {values[-1]:.3g}" for label, (_, values) in lines.items() if values)
    with chart(name, f"{title} over optimizer steps. {last}.") as (axes, drawn):
        for i, (label, points) in enumerate(lines.items()):
            axes.plot(*points, color=SERIES[i % len(SERIES)], marker="o", label=label if len(lines) > 1 else None)
        axes.set_title(title)
        if log and all(map(positive, lines.values())):
            logarithmic(axes)
        finish(axes, "optimizer step")
    return drawn


def plane(name: str, across: str, up: str, metrics: Mapping[str, Any], classes: Mapping[str, Any]) -> Chart | None:
    """One figure against another, with intervals: all images, each class, and hollow what real images would score."""
    points = {label: of["metrics"] for label, of in classes.items()} | {"all": metrics}
    points = {
        label: (of[across]["test"], of[up]["test"])
        for label, of in points.items()
        if is_figure(of.get(across, {}).get("test")) and is_figure(of.get(up, {}).get("test"))
    }
    if not points:
        return None
    said = "; ".join(f"{label}: {across} {x['value']:.3g}, {up} {y['value']:.3g}" for label, (x, y) in points.items())
    with chart(name, f"{up.capitalize()} against {across}, of the test images. {said}.") as (axes, drawn):
        lowest_first = sorted(points.items(), key=lambda point: (point[0] == "all", point[1][1]["value"]))
        for i, (label, (x, y)) in enumerate(lowest_first):
            paint = {"color": SERIES[0]} if label == "all" else {"color": INK, "alpha": 0.7}
            place = x["value"], y["value"]
            axes.errorbar(*place, xerr=whiskers(x), yerr=whiskers(y), elinewidth=0.8, fmt="o", **paint)
            # Neighbours in height have their names on different sides.
            side = {"xytext": (-4, 4), "ha": "right"} if i % 2 else {"xytext": (4, 4)}
            axes.annotate(shortened(label), place, textcoords="offset points", fontsize=8.5, **side, **paint)
            if is_figure(x.get("floor")) and is_figure(y.get("floor")):
                axes.plot(x["floor"]["value"], y["floor"]["value"], "o", mfc="none", **paint)
        axes.set_title(f"{up} against {across}")
        axes.plot([], [], "o", color=INK, label="generated")
        axes.plot([], [], "o", mfc="none", color=INK, label="real in their place")
        finish(axes, across, up)
    return drawn


def ratios(kind: str, generated: Sequence[float], held_out: Sequence[float], threshold: float | None) -> Chart | None:
    """How near images are to their nearest training image, against the nearest of held-out ones."""
    import numpy as np

    sets = {"generated": np.array(generated, float), "held-out real": np.array(held_out, float)}
    sets = {label: values[np.isfinite(values)] for label, values in sets.items()}
    sets = {label: values for label, values in sets.items() if len(values)}
    if not sets:
        return None
    every = np.concatenate(list(sets.values()))
    edges = np.linspace(0, max(float(np.quantile(every, 0.995)), threshold or 0) * 1.05 or 1, 41)
    said = "; ".join(f"{label}: median {np.median(values):.3g} of {len(values)}" for label, values in sets.items())
    said += "" if threshold is None else f"; threshold {threshold:.3g}"
    with chart(f"ratio-{kind}", f"Histogram of the {kind} distance ratio. {said}.") as (axes, drawn):
        for colour, (label, values) in zip((SERIES[0], INK), sets.items(), strict=False):
            # The few beyond the last edge are counted in the last bin.
            shares = np.full(len(values), 1 / len(values))
            axes.hist(np.minimum(values, edges[-1]), edges, weights=shares, color=colour, alpha=0.4, label=label)
        if threshold is not None:
            axes.axvline(threshold, color=SERIES[1], linestyle="--", label="threshold")
        axes.set_title(f"{kind} distance ratio")
        finish(axes, "distance to training / to held-out", "share of images")
    return drawn


def accuracies(budgets: Mapping[str, Any], arms: Sequence[str], metric: str) -> Chart | None:
    """A figure of each arm at each budget, with intervals."""
    names = list(budgets)
    every = {arm: [budgets[name]["arms"].get(arm, {}).get(metric) for name in names] for arm in arms}
    found = {arm: [(k, figure) for k, figure in enumerate(row) if is_figure(figure)] for arm, row in every.items()}
    found = {arm.replace("_", " "): points for arm, points in found.items() if points}
    if not found:
        return None
    said = "; ".join(
        f"{arm}: " + ", ".join(f"{names[k]}: {figure['value']:.3g}" for k, figure in points)
        for arm, points in found.items()
    )
    title = f"{'AUROC' if metric == 'auroc' else metric} on test images"
    with chart(f"utility-{metric}", f"{title} by the real images of each class. {said}.") as (axes, drawn):
        for i, (arm, points) in enumerate(found.items()):
            shift = (i - (len(found) - 1) / 2) * 0.11
            values = [figure["value"] for _, figure in points]
            bars = list(zip(*(lengths(figure) for _, figure in points), strict=True))
            colour = INK if arm == "real" else SERIES[i % len(SERIES)]
            axes.errorbar([k + shift for k, _ in points], values, yerr=bars, fmt="o", color=colour, label=arm)
        axes.set_xticks(range(len(names)), names)
        axes.grid(visible=False, axis="x")
        axes.set_title(title)
        finish(axes, "real images of each class")
    return drawn


def gauge(figure: Figure, floor: Figure | None, ends: tuple[float, float]) -> str:
    """A line for a table's cell, with a stroke at 0: the figure and its interval, and hollow what real images score."""
    least, most = ends

    def at(value: float) -> float:
        return round(4 + 112 * (value - least) / ((most - least) or 1), 1)

    def drawn(of: Figure, kind: str, height: int, radius: float) -> str:
        ends = f'x1="{at(of["low"])}" x2="{at(of["high"])}" y1="{height}" y2="{height}"'
        dot = f'cx="{at(of["value"])}" cy="{height}" r="{radius}"'
        return f'<line class="whisker {kind}" {ends}/><circle class="{kind}" {dot}/>'

    below = drawn(floor, "floor", 13, 2.6) if is_figure(floor) else ""
    axis = f'<path class="axis" d="M4 9.5H116M{at(0)} 2V17"/>'
    return f'<svg class="gauge" viewBox="0 0 120 18" aria-hidden="true">{axis}{below}{drawn(figure, "own", 6, 3)}</svg>'


def ends_of(metrics: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The ends of a gauge: 0, and the ends of all intervals of this metric, whatever it is held against."""
    shown = [figure for metric, _, figure in figures_of(metrics) if metric == name]
    shown += [figure["floor"] for figure in shown if is_figure(figure.get("floor"))]
    ends = [0.0, *(figure[key] for figure in shown for key in ("value", "low", "high"))]
    return min(ends), max(ends)


def curve(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in points], [value for _, value in points]


def mark(points: tuple[list[int], list[float]]) -> str | None:
    """A single point makes no line."""
    return "." if len(points[0]) == 1 else None


def shortened(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def positive(points: tuple[list[int], list[float]]) -> bool:
    return all(value > 0 for value in points[1])


def lengths(figure: Figure) -> tuple[float, float]:
    """The lengths of the whiskers below and above; none is negative, for an interval may leave its value out."""
    return max(figure["value"] - figure["low"], 0.0), max(figure["high"] - figure["value"], 0.0)


def whiskers(figure: Figure) -> list[list[float]]:
    return [[length] for length in lengths(figure)]


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis, with plain numbers for ticks; one that spans little is ticked as a linear one."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 30:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def finish(axes: Axes, across: str, up: str | None = None) -> None:
    """Name the axes; the legend goes below, where it hides nothing."""
    axes.set_xlabel(across)
    if up:
        axes.set_ylabel(up)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 3 if len(labels) != 4 else 4
        axes.figure.legend(
            handles, labels, loc="outside lower left", ncols=columns, handlelength=1.4, columnspacing=1.3
        )
