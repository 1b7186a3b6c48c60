"""The run directory while training is at work in it: claimed, begun or gone on with, and logged into."""

from __future__ import annotations

import csv
import logging
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion.apps.folders import alone_in
from diffusion.apps.launchers import RUN_LOCK, first_process
from diffusion.errors import UserError
from diffusion.files import remove_temporaries, replace_file
from diffusion.models import another_codec
from diffusion.runs import Run, differences

LOG = "train.log"


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """The directory, made if need be, and closed to other runs; the processes of one run share it.

    Raises UserError if another run is at work in it, or it cannot be made.
    """
    if not first_process():
        yield
        return
    with alone_in(directory / RUN_LOCK, "run", "run directory"):
        remove_temporaries(directory)
        yield


def find_run(directory: Path, cfg: DictConfig) -> Run | None:
    """The run to go on with, if there is one. Raises UserError if it may not go on with this config."""
    passing = (RUN_LOCK, LOG)
    if not directory.exists() or all(path.name in passing or path.suffix == ".tmp" for path in directory.iterdir()):
        return None
    run = Run.open(directory)
    if cfg.resume == "never":
        raise UserError(f"run {directory} exists and resume=never: choose another run_id")
    changed = differences(run.config, cfg)
    if changed and not run.checkpoints.exists():
        return None  # nothing was trained yet: it may begin anew
    began, now = run.config.data.codec_fingerprint, cfg.data.codec_fingerprint
    if began != now:
        raise UserError(f"run {directory}: {another_codec(began, now)}")
    began, now = (config.data.get("teacher_fingerprint") for config in (run.config, cfg))
    if began and now and began != now:
        raise UserError(
            f"run {directory}: model.teacher={cfg.model.teacher} is not the one with which this run began (fingerprint "
            f"{began}, now {now}), or was trained on since: give that one, or begin another run_id"
        )
    if changed and all(line.startswith(("data.fingerprint:", "data.std:")) for line in changed):
        where = cfg.dataset.get("path") or "the data set"
        raise UserError(
            f"run {directory} began on other data than {where} now holds (fingerprint "
            f"{run.config.data.fingerprint}, now {cfg.data.fingerprint}): restore them, or begin another run_id"
        )
    if changed:
        raise UserError(
            f"run {directory} was made with another config ({'; '.join(changed)}): use the same one, or another run_id"
        )
    cfg.wandb_id = run.config.wandb_id
    return run


def begun(
    directory: Path,
    cfg: DictConfig,
    files: Sequence[tuple[str, str, str]] | None = None,
    patience: float = 60.0,
) -> Run:
    """The run to go on with, or a new one, which the first process begins and the others wait for.

    Raises UserError as `find_run` does, and if the first process does not begin it within `patience` seconds.
    """
    if first_process():
        return find_run(directory, cfg) or start_run(directory, cfg, files)
    deadline = time.monotonic() + patience
    while (run := find_run(directory, cfg)) is None:
        if time.monotonic() > deadline:
            raise UserError(f"the first process has not begun run {directory}: look for its error")
        time.sleep(0.1)
    return run


def start_run(directory: Path, cfg: DictConfig, files: Sequence[tuple[str, str, str]] | None = None) -> Run:
    """Begin a run: its config.yaml is written, once, and splits.csv where the data come from `files`.

    files: path, split and label of each
    """
    if files is not None:

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("path", "split", "label"), *files])

        replace_file(directory / "splits.csv", write)
    cfg.wandb_id = secrets.token_hex(4)
    replace_file(directory / "config.yaml", lambda path: OmegaConf.save(cfg, path))
    return Run(directory, cfg)


@contextmanager
def held_back() -> Iterator[list[logging.LogRecord]]:
    """Keep what this project's modules log until there is a place for it; where a run is refused, nobody reads it."""
    handler = MemoryHandler(capacity=1 << 20, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    handler.addFilter(lambda record: record.name.split(".")[0] in ("datamodules", "diffusion"))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Log to a file and to standard error; other processes than the first are silent."""
    if not first_process():
        yield
        return
    file, console = logging.FileHandler(path), logging.StreamHandler(sys.stderr)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in (file, console):
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in (file, console):
            root.removeHandler(handler)
        file.close()
