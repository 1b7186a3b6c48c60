"""What the tasks have left in a run's folder, and how a page writes its figures."""

from __future__ import annotations

import csv
import json
import logging
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("diffusion")

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
Figure = dict[str, Any]
"""{"value": float, "low": float, "high": float, ...}, as every task writes a figure with its 95% interval."""


@dataclass
class Part:
    """What one task has written into its folder of the run, as far as it is there and can be read."""

    task: str
    folder: Path
    command: str
    found: dict[str, Any] | None = None
    problem: str | None = None

    @classmethod
    def of(cls, directory: Path, task: str, run: str) -> Part:
        """metrics.json of a task; a file that cannot be read is named in a warning, and in `problem`."""
        part = cls(task, directory / task, f"python -m diffusion {task} run={shlex.quote(str(run))}")
        path = part.folder / "metrics.json"
        if path.exists():
            try:
                part.found = json.loads(path.read_text())
                if not isinstance(part.found, dict):
                    raise ValueError("it holds no table of figures")
            except (OSError, ValueError) as error:
                part.damaged("metrics.json", error)
        return part

    def damaged(self, name: str, error: Exception) -> None:
        """Note that a file of this part cannot be used, and go on without the part."""
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        self.found = None
        self.problem = f"{self.folder / name} is damaged ({reason}): make it again with overwrite=true"
        log.warning("%s", self.problem)

    def cases(self, name: str) -> dict[str, list[str]]:
        """A table of one row an image, by column; empty where it is not there. Raises ValueError for a damaged one."""
        path = self.folder / name
        if not path.exists():
            return {}
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if any(None in row or None in row.values() for row in rows):
            raise ValueError(f"{name} has rows of different lengths")
        return {column: [row[column] for row in rows] for column in (rows[0] if rows else ())}


def is_figure(value: object) -> bool:
    """Whether it is a number with an interval."""
    return isinstance(value, dict) and value.get("value") is not None and {"low", "high"} <= value.keys()


def figures_of(metrics: dict[str, Any]) -> Iterator[tuple[str, str, Figure]]:
    """(metric, what it is held against or of, figure), in the order of the file."""
    for name, by_reference in metrics.items():
        for reference, figure in by_reference.items():
            if is_figure(figure):
                yield name, reference, figure


def number(value: float | None, like: float | None = None) -> str:
    """Three significant digits; with `like`, as many decimals as three digits of that number have."""
    if value is None or not math.isfinite(value):
        return NONE if value is None else "not finite"
    scale = abs(value if like is None else like)
    if scale == 0:
        return "0"
    decimals = 2 - math.floor(math.log10(scale))
    if decimals > 7:
        return f"{value:.2e}".replace("-", MINUS)
    return f"{round(value, decimals):.{max(decimals, 0)}f}".replace("-", MINUS)


def with_interval(figure: Figure | None, factor: float = 1.0, unit: str = "") -> str:
    """ "0.540 (0.500 to 0.580)": all with the decimals of the value, or of the larger end where it is next to 0."""
    if not is_figure(figure):
        return NONE
    values = [figure[key] * factor for key in ("value", "low", "high")]
    like = values[0] if abs(values[0]) > max(map(abs, values)) / 4 else max(map(abs, values))
    value, low, high = (number(v, like) + unit for v in values)
    return f"{value} ({low} to {high})"


def percent(figure: Figure | None) -> str:
    """A share with its interval, in percent."""
    return with_interval(figure, 100, "%")
