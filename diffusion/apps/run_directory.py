"""The run directory while training is at work in it: claimed, begun or gone on with, and logged into."""

from __future__ import annotations

import csv
import fcntl
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion.errors import UserError
from diffusion.files import remove_temporaries, replace_file
from diffusion.models import another_codec
from diffusion.runs import Run, differences

LOCK, LOG = ".lock", "train.log"


def first_process() -> bool:
    """Whether this is the process, of those that train one run together, that writes its files."""
    names = ["RANK", "LOCAL_RANK", "NODE_RANK", *(["SLURM_PROCID"] if started_by_srun() else [])]
    return all(os.environ.get(name, "0") == "0" for name in names)


def started_by_srun() -> bool:
    """Whether Slurm has started several processes; in a plain batch script it numbers the only one."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


@contextmanager
def claimed(directory: Path, patience: float = 60.0) -> Iterator[None]:
    """The directory, made if need be, and closed to other runs; the processes of one run share it.

    Raises UserError if another run is at work in it, it cannot be made, or the first process does not begin the run
    within `patience` seconds.
    """
    if not first_process():
        deadline = time.monotonic() + patience
        while not (directory / "config.yaml").exists():
            if time.monotonic() > deadline:
                raise UserError(f"the first process has not begun run {directory}: look for its error")
            time.sleep(0.1)
        yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot make the run directory {directory}: {error.strerror}; set runs_dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"run {directory} is at work in another process: wait for it, or stop it") from error
        remove_temporaries(directory)
        yield


def find_run(directory: Path, cfg: DictConfig) -> Run | None:
    """The run to go on with, if there is one. Raises UserError if it may not go on with this config."""
    if not directory.exists() or all(path.name in (LOCK, LOG) or path.suffix == ".tmp" for path in directory.iterdir()):
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
