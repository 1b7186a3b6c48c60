"""python -m diffusion publish: bring what the tasks have made of a run to its page on Weights & Biases.

The page is the one that the run has shown itself on while it trained. A run that has none, because it was logged to
metrics.csv alone, gets one with its whole history.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion.apps.run_directory import claimed
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.callbacks.wandb_page import files_of
from diffusion.errors import UserError
from diffusion.models import factory
from diffusion.runs import Run

log = logging.getLogger("diffusion")

WHILE_TRAINING = ("samples", "figures")
"""Folders of pictures that training makes, and shows itself."""
ASIDE = ("receipt", "definitions", "classes")
"""Sections of a metrics.json that hold no results, or too many for a table of runs."""


def main(config: DictConfig) -> None:
    """Log pictures, figures and the report of the tasks, and the run's files as artifacts.

    Raises UserError where the run has no page and none is named, W&B refuses, or the run is at work.
    """
    run = Run.open(config.run)
    if not config.logger:
        raise UserError(f"{run.directory} has no page: give it one, logger=wandb, or logger=wandb_offline and sync it")
    rows = read_rows(run.directory / "metrics.csv")
    step = int(rows[-1]["step"]) if rows else 0
    page = factory(config.logger)().of(run.directory, OmegaConf.to_container(run.config))
    with claimed(run.directory), page:
        page.log_metrics(dict(media_of(run.directory)), step)
        page.experiment.summary.update(results_of(run.directory))
        page.log_files()
        kinds = [kind for kind in files_of(run.directory) if kind != "checkpoints" or page.checkpoints]
        log.info("%s, step %d: %s", run.directory, step, ", ".join(kinds))


def media_of(directory: Path) -> Iterator[tuple[str, Any]]:
    """The tasks' pictures and trajectories, as `samples/TASK/NAME`, and the report."""
    import wandb

    files = files_of(directory)
    for path in files.get("grids", []) + files.get("trajectories", []):
        folder = path.parent.relative_to(directory).as_posix()
        if folder in WHILE_TRAINING:
            continue
        made = wandb.Image(str(path)) if path.suffix == ".png" else wandb.Video(str(path))
        yield f"samples/{folder}/{path.stem}", made
    for path in files.get("report", []):
        yield "eval/report", wandb.Html(str(path), inject=False)


def results_of(directory: Path) -> dict[str, float]:
    """The figures of all receipts, as `eval/TASK/...`; of one that has an interval, the value."""
    found: dict[str, float] = {}
    for path in files_of(directory).get("receipts", []):
        if path.name == "metrics.json":
            task = path.parent.relative_to(directory).as_posix()
            found |= figures(json.loads(path.read_text()), f"eval/{task}")
    return found


def figures(node: Any, name: str) -> dict[str, float]:
    """The numbers in a receipt, by their path in it."""
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        return {name: node}
    if not isinstance(node, dict):
        return {}
    found: dict[str, float] = figures(node["value"], name) if "value" in node else {}
    for key, inner in node.items():
        if key in ASIDE or ("value" in node and not isinstance(inner, dict)):
            continue
        found |= figures(inner, name if key == "metrics" else f"{name}/{key}")
    return found
