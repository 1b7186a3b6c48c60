"""What a sweep has found: sweep.csv, and sweep.html with parallel coordinates, a table, and what each trial drew."""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from diffusion.apps import pages
from diffusion.apps.report.charts import INK, Chart, chart
from diffusion.apps.report.pictures import Picture, address
from diffusion.apps.report.results import NONE
from diffusion.apps.trials import FINISHED, RUNNING, Trial
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.files import replace_file

METRICS = ("eval/kid", "val/loss")
"""What ranks trials that are not told by what, the first that one of them has."""
MOST_PICTURES, PICTURE = 30, 360
"""Trials whose samples are shown, and their widest side in pixels."""
LONGEST = 16
"""Letters of a mark, and of a line of an axis's name, in the parallel coordinates."""
WIDE = 200
"""Columns of the printed table where it does not go to a terminal."""
NEAREST, SPREAD = 0.07, 0.05
"""Of parallel coordinates, as shares of an axis: how near its marks may be, how far apart lines of one value are."""


@dataclass
class Row:
    """One trial: its place, from 1, or None where it has no value; what it changes; its last value of each metric."""

    trial: Trial
    known: dict[str, Any]
    changes: dict[str, str]
    last: dict[str, float]
    steps: int | None
    place: int | None = None

    @property
    def status(self) -> str:
        status = self.known.get("status") or "not begun"
        return "cut" if status == RUNNING else status

    @property
    def run(self) -> str:
        return self.known.get("run", "")

    @property
    def link(self) -> str | None:
        """The run's report where there is one, else its folder, from the folder of the sweep; None without a run."""
        there = [path for path in (Path(self.run) / "report.html", Path(self.run)) if self.run and path.exists()]
        return os.path.relpath(there[0], self.trial.folder) if there else None


def save_results(folder: Path, trials: Sequence[Trial], metric: str | None, highest: bool) -> None:
    """Write both files into the sweep's folder, and print the table.

    A trial counts by the last value of the metric, so that none gains by having been looked at more often.
    """
    rows, metric = ranked(trials, metric, highest)
    keys = list(rows[0].changes)
    replace_file(folder / "sweep.csv", lambda path: write_csv(path, rows, keys, metric))
    page = page_of(folder, rows, keys, metric, highest)
    replace_file(folder / "sweep.html", lambda path: path.write_text(page, encoding="utf-8"))
    print_table(rows, keys, metric)
    print(f"{folder / 'sweep.csv'}\n{folder / 'sweep.html'}", file=sys.stderr)


def ranked(trials: Sequence[Trial], metric: str | None, highest: bool) -> tuple[list[Row], str]:
    """The trials, the best first, those without a value last; and the metric that ranks them."""
    words = [dict(word.lstrip("+~").split("=", 1) for word in trial.words if "=" in word) for trial in trials]
    names = dict.fromkeys(name for each in words for name in each)
    varied = [name for name in names if len({each.get(name) for each in words}) > 1]
    rows = [
        Row(trial, trial.read(), {name: each.get(name, "") for name in varied}, *_last(trial.read().get("run")))
        for trial, each in zip(trials, words, strict=True)
    ]
    metric = metric or next((name for name in METRICS if any(name in row.last for row in rows)), METRICS[-1])

    def key(row: Row) -> tuple[bool, bool, float]:  # what has no finite value comes last
        value = row.last.get(metric, math.nan)
        counts = row.known.get("status") == FINISHED and math.isfinite(value)
        return not counts, row.known.get("status") != FINISHED, (-value if highest else value) if counts else 0.0

    rows.sort(key=key)
    for place, row in enumerate((row for row in rows if not key(row)[0]), 1):
        row.place = place
    return rows, metric


def _last(run: str | None) -> tuple[dict[str, float], int | None]:
    """The last value of every column of a run's metrics.csv, and its last step."""
    values: dict[str, str] = {}
    for row in read_rows(Path(run) / "metrics.csv") if run else ():
        values |= {name: value for name, value in row.items() if value}
    step = int(values.pop("step")) if "step" in values else None
    return {name: float(value) for name, value in values.items()}, step


def write_csv(path: Path, rows: Sequence[Row], keys: Sequence[str], metric: str) -> None:
    metrics = sorted({name for row in rows for name in row.last if name.startswith(("val/", "eval/"))} - {metric})
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ["place", "trial", "status", *keys, metric, *metrics, "steps", "seconds", "attempts", "run", "error"]
        )
        for row in rows:
            figures = [row.last.get(name, "") for name in (metric, *metrics)]
            counts = [row.steps or 0, row.last.get("elapsed_seconds", ""), row.known.get("attempts", 0)]
            place = "" if row.place is None else row.place
            changes = [row.changes[key] for key in keys]
            told = [row.run, row.known.get("error") or ""]
            table.writerow([place, row.trial.id, row.status, *changes, *figures, *counts, *told])


def print_table(rows: Sequence[Row], keys: Sequence[str], metric: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in (metric, "steps", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for name in short(keys):
        table.add_column(name, overflow="fold")
    for row in rows:
        seconds = f"{row.last['elapsed_seconds']:.0f}" if "elapsed_seconds" in row.last else ""
        cells = [str(row.place or ""), figure(row.last.get(metric)), str(row.steps or ""), seconds, row.status]
        table.add_row(*cells, *(row.changes[key] for key in keys))
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def short(keys: Sequence[str]) -> list[str]:
    """The last part of each key where that tells them apart, else the whole."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for name, key in zip(last, keys, strict=True)]


def figure(value: float | None) -> str:
    """Five digits, so that trials that differ little can be told apart."""
    return NONE if value is None else f"{value:.5g}"


def page_of(folder: Path, rows: Sequence[Row], keys: Sequence[str], metric: str, highest: bool) -> str:
    """sweep.html; it needs nothing else."""
    with_pictures = [row for row in rows if row.run][:MOST_PICTURES]
    values = dict(
        title=folder.name,
        rows=rows,
        keys=dict(zip(keys, short(keys), strict=True)),
        metric=metric,
        order="highest" if highest else "lowest",
        number=figure,
        dash=NONE,
        coordinates=coordinates(rows, keys, metric, highest),
        pictures=[(row, picture) for row in with_pictures if (picture := picture_of(row))],
        finished=sum(row.status == FINISHED for row in rows),
    )
    return pages.render(Path(__file__).with_name("sweep.html"), values)


def coordinates(rows: Sequence[Row], keys: Sequence[str], metric: str, highest: bool) -> Chart | None:
    """Parallel coordinates: an axis for each key and one for the metric, a line for each trial that has a value.

    The better the trial, the darker its line; line i has the id coordinates-trial-PLACE. None for fewer than two.
    """
    rows = [row for row in rows if row.place]
    if len(rows) < 2 or not keys:
        return None
    import matplotlib

    axes = [Axis.of([row.changes[key] for row in rows]) for key in keys]
    axes.append(Axis.of([f"{row.last[metric]:.8g}" for row in rows]))
    order = "highest" if highest else "lowest"
    said = (
        f"Parallel coordinates of {', '.join(keys)} and {metric}: {len(rows)} trials, the {order} {metric} the darkest."
    )
    shades = matplotlib.colormaps["viridis"]
    with chart("coordinates", said, size=(max(8.0, 1.7 * len(axes)), 3.6)) as (canvas, drawn):
        for place, row in reversed(list(enumerate(rows))):
            aside = SPREAD * (place / (len(rows) - 1) - 0.5)
            heights = [axis.heights[place] + (aside if axis is not axes[-1] else 0) for axis in axes]
            colour = shades(0.85 * place / (len(rows) - 1))
            canvas.plot(range(len(axes)), heights, color=colour, lw=1.8, gid=f"trial-{row.place}", clip_on=False)
        for x, axis in enumerate(axes):
            canvas.axvline(x, color=INK, lw=0.8)
            for height, text in axis.marks:
                shift = {"xytext": (4, 3), "textcoords": "offset points"}
                where = (x, height + SPREAD / 2)
                mark = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
                canvas.annotate(mark, where, **shift, fontsize=8.5, color=INK, zorder=5)
        canvas.set_xticks(range(len(axes)), ["\n".join(wrap(name, LONGEST)) for name in (*short(keys), metric)])
        canvas.xaxis.tick_top()
        canvas.tick_params(length=0)
        canvas.set_yticks([])
        canvas.set(xlim=(-0.1, len(axes) - 0.6), ylim=(-0.06, 1.12))
        canvas.grid(False)
        for side in canvas.spines.values():
            side.set_visible(False)
    return drawn


@dataclass
class Axis:
    """One axis of the parallel coordinates: the height of each trial in [0, 1], and the marks (height, text)."""

    heights: list[float]
    marks: list[tuple[float, str]]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Axis:
        """Names evenly in their order; numbers at their size, on a logarithmic scale where they span above a decade."""
        try:
            values = [float(text) for text in texts]
        except ValueError:
            names = sorted(set(texts))
            places = {name: i / max(1, len(names) - 1) for i, name in enumerate(names)}
            return cls([places[text] for text in texts], [(place, name or NONE) for name, place in places.items()])
        least, most = min(values), max(values)
        if least == most:
            return cls([0.5] * len(values), [(0.5, f"{least:.4g}")])
        scale = math.log10 if least > 0 and most > 10 * least else float
        places = {value: (scale(value) - scale(least)) / (scale(most) - scale(least)) for value in sorted({*values})}
        marked = [most]
        for value, height in reversed(places.items()):
            if places[marked[-1]] - height > NEAREST:
                marked.append(value)
        digits = next(n for n in range(4, 18) if len({f"{value:.{n}g}" for value in marked}) == len(marked))
        return cls([places[value] for value in values], [(places[value], f"{value:.{digits}g}") for value in marked])


def picture_of(row: Row) -> Picture | None:
    """What the trial drew last, made smaller."""
    drawn = sorted((Path(row.run) / "samples").glob("step_*.png"))
    if not drawn:
        return None
    with Image.open(drawn[-1]) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    return Picture(address(picture), f"What {row.trial.id} drew last", *picture.size)
