"""The logger that is always on: metrics.csv in the run directory."""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from diffusion.files import replace_file


class MetricsCSV(Logger):
    """One row a log call; the first column is the step, the others appear as they are first logged.

    Rows are appended, and reach the file before the call returns. `cut_back` removes what came after a checkpoint.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._columns = list(read_columns(path))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self._columns]
        if new:
            rows = list(read_rows(self.path))
            self._columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def cut_back(self, step: int) -> None:
        """Remove all rows after `step`, and a last row that a killed process left unfinished."""
        if self._columns:
            self._rewrite([row for row in read_rows(self.path) if int(row["step"]) <= step])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        def write(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(rows)

        replace_file(self.path, write)


def read_columns(path: Path) -> list[str]:
    """The column names; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows, as text by column; a value that a row lacks is "". A cut last row is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(whole.splitlines()))
