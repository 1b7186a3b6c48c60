"""A trial at work: python train.py in a process of its own, and what its run has written so far."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion.apps.cli import EXIT_STOPPED
from diffusion.apps.config import CONF
from diffusion.apps.launchers import RUN_LOCK, SWEEP, end_with_parent
from diffusion.apps.tune.search import Taken
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.files import claim
from diffusion.processor import cores

log = logging.getLogger("diffusion")

TRAIN = CONF.parent / "train.py"


class Attempt:
    """Trains a trial in `run`, as soon as a process that an earlier driver has left there is gone."""

    def __init__(self, trial: Taken, words: Sequence[str], run: Path, log: Path, environment: Mapping[str, str]):
        self.trial, self.run, self.log = trial, run, log
        self.rows: list[dict[str, str]] = []
        self.stopped = False
        self._waits = False
        self._command = [sys.executable, str(TRAIN), *words, f"run_id='{run.name}'"]
        self._environment = environment
        self._process: subprocess.Popen | None = None
        self._told: dict[int, float] = {}
        self._seen: tuple[int, int] | None = None

    def poll(self) -> int | None:
        """The status with which the process has ended, a negated signal's number too; None while it has not."""
        if self._process is None:
            if not self.stopped:
                self._start()
            return EXIT_STOPPED if self.stopped else None
        status = self._process.poll()
        self._read()
        return status

    def stop(self) -> None:
        """Ask it to save and to end; poll() tells when it has."""
        self.stopped = True
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)

    def column(self, name: str) -> dict[int, float]:
        """step -> value, of what was logged so far and is finite."""
        values = {int(row["step"]): float(row[name]) for row in self.rows if row.get(name)}
        return {step: value for step, value in values.items() if math.isfinite(value)}

    def news(self, name: str) -> dict[int, float]:
        """What of a column was not there at the last call."""
        found = {step: value for step, value in self.column(name).items() if self._told.get(step) != value}
        self._told |= found
        return found

    def last(self, name: str) -> float:
        """The newest value of a column; 0 where there is none."""
        return next(reversed(self.column(name).values()), 0.0)

    def why(self, status: int) -> str:
        """The line that says why it failed."""
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else f"it ended with status {status}"

    def _start(self) -> None:
        if (self.run / RUN_LOCK).exists():
            free = claim(self.run / RUN_LOCK)
            if free is None:
                if not self._waits:
                    log.info("trial %d waits: run %s is at work in another process", self.trial.number, self.run)
                self._waits = True
                return
            free.close()
        with self.log.open("a") as file:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **self._environment},
                start_new_session=True,  # Ctrl-C is for the driver, which passes it on
                preexec_fn=end_with_parent,
            )

    def _read(self) -> None:
        path = self.run / "metrics.csv"
        if path.exists() and (seen := (path.stat().st_mtime_ns, path.stat().st_size)) != self._seen:
            self._seen, self.rows = seen, read_rows(path)


def was_stopped(status: int) -> bool:
    """Whether a process ended because it was asked to, or because its machine was taken: it may go on."""
    return status == EXIT_STOPPED or status in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL, -signal.SIGUSR1)


def environment_of(slot: int, workers: int, devices: object, folder: Path) -> dict[str, str]:
    """What the process of one of `workers` trials at a time is told: its share of the processor, and its GPUs.

    devices: how many GPUs a trial takes
    """
    told = {SWEEP: str(folder)}
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        told["OMP_NUM_THREADS"] = str(max(1, cores() // workers))
    gpus = visible_gpus() if workers > 1 and isinstance(devices, int) else []
    if shares := [gpus[i : i + devices] for i in range(0, len(gpus) - devices + 1, devices)] if gpus else []:
        told["CUDA_VISIBLE_DEVICES"] = ",".join(shares[slot % len(shares)])
    return told


def visible_gpus() -> list[str]:
    """The names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
