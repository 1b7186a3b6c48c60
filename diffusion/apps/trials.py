"""The trials of a sweep: what each is called, what became of it, and where that is written down.

A sweep lives in RUNS_DIR/sweeps/NAME; trials/ID.json there holds what is known of a trial, trials/ID.log what it
printed where it ran unseen. Its run is an ordinary one, RUNS_DIR/EXPERIMENT/ID. Imports nothing heavy.
"""

from __future__ import annotations

import glob
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from diffusion.apps.cli import deferred, explain
from diffusion.apps.launchers import (
    DRIVER,
    RUN_LOCK,
    SWEEP,
    end_with_parent,
    end_without_parent,
    first_process,
    job_id,
)
from diffusion.errors import Abandoned, Stopped
from diffusion.files import claim, replace_file

RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"
NO_MORE = ".stopped"
"""A file in the folder of a sweep: no other trial is to begin."""
OTHER_LOSS = ("objective", "model", "dataset", "codec")
"""Groups of which each choice, and nearly every key, gives the loss another meaning."""
IGNORED = ("runs_dir=", "logger=", "logger.", "run_id=")
"""Words of a command that do not change what a trial computes."""


def trial_id(words: Sequence[str]) -> str:
    """The id of a trial's run: its sorted overrides, so that the same sweep finds the same runs again."""
    return _name(sorted(word for word in words if not word.lstrip("+~").startswith(IGNORED)))


def sweep_name(words: Sequence[str], swept: Sequence[str]) -> str:
    """The name of the sweep that a command's words describe: the ready one that they name, then what they sweep over.

    A digest stands for the other words that a trial's id has, where there are any.
    """
    ready = [word.removeprefix("sweep=") for word in words if word.startswith("sweep=")]
    rest = sorted(word for word in words if not word.lstrip("+~").startswith((*IGNORED, "sweep=")))
    named = [*ready, *(word for word in rest if word in swept)]
    return _name(named) if set(rest) <= set(swept) else f"{_name(named)[:100]}-{_digest(rest)[:8]}"


def _name(words: Sequence[str]) -> str:
    text = ",".join(words) or "defaults"
    name = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", text).strip(".,=+-")
    if name == text and len(name) <= 200:
        return name
    # Of long keys the last part says enough beside the digest.
    name = name if len(name) <= 180 else re.sub(r"(?<![^,])[+~]?[A-Za-z0-9_.-]+\.(?=[A-Za-z0-9_]+=)", "", name)
    return f"{name[:180]}-{_digest(words)}"


def _digest(words: Sequence[str]) -> str:
    return blake2b(repr(list(words)).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Trial:
    """One combination of a sweep's values: the folder of the sweep, the words of its command, and what to call it."""

    folder: Path
    words: tuple[str, ...]
    called: str = ""

    @cached_property
    def id(self) -> str:
        return trial_id(self.words)

    @property
    def path(self) -> Path:
        return self.folder / "trials" / f"{self.id}.json"

    @property
    def output(self) -> Path:
        """What it printed where it did not run in the process that the user sees."""
        return self.path.with_suffix(".log")

    def read(self) -> dict[str, Any]:
        """What is known of it; nothing where it has not begun."""
        try:
            return json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return {}

    @property
    def status(self) -> str | None:
        """running, finished, failed or stopped; None where it has not begun. A killed one still says running."""
        return self.read().get("status")

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: it is finished, and its run is still there."""
        known = self.read()
        return known.get("status") == FINISHED and (Path(known["run"]) / "config.yaml").is_file()

    @property
    def at_work(self) -> bool:
        """Whether it runs in another process of this machine, of which its record holds the number."""
        known = self.read()
        here = {"status": RUNNING, "host": socket.gethostname(), "job": job_id()}
        if any(known.get(key) != value for key, value in here.items()) or known["pid"] == os.getpid():
            return False
        lock = claim(self._lock)
        if lock is not None:
            lock.close()
        return lock is None

    @property
    def _lock(self) -> Path:
        return self.path.with_suffix(".lock")

    def note(self, **facts: Any) -> None:
        """Write down what has become known."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"id": self.id, "words": self.words} | self.read() | facts, indent=2) + "\n"
        replace_file(self.path, lambda path: path.write_text(text))

    def adopt(self) -> None:
        """Take over what another sweep knows of a trial of the same words that it has finished."""
        if self.finished:
            return
        for path in sorted(self.folder.parent.glob(f"*/trials/{glob.escape(self.id)}.json")):
            other = Trial(path.parent.parent, self.words)
            if other.finished:
                self.note(**other.read())
                return

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While it runs: what becomes of it is written down, and its failure is no concern of the others.

        Stopped, Abandoned and KeyboardInterrupt are noted and passed on: it may go on.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        # A killed process of it may still be saving.
        with claim(self._lock, wait=True):
            began, known = time.monotonic(), self.read()
            self.note(
                status=RUNNING,
                error=None,
                attempts=known.get("attempts", 0) + 1,
                host=socket.gethostname(),
                pid=os.getpid(),
                job=job_id(),
            )
            try:
                yield
            except (Stopped, Abandoned, KeyboardInterrupt):
                self.note(status=STOPPED)
                raise
            except Exception as error:
                line = explain(error)
                if line is None:
                    traceback.print_exc()
                    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
                self.note(status=FAILED, error=line)
                print(f"failed: {line}", file=sys.stderr)
            else:
                self.note(status=FINISHED, seconds=round(known.get("seconds", 0.0) + time.monotonic() - began, 1))

    def begins(self, run: Path) -> None:
        """Note its run's directory, and wait while another command is at work in it."""
        self.note(run=str(run))
        lock = run / RUN_LOCK
        if lock.exists():
            free = claim(lock)
            if free is None:
                print(f"waiting: run {run} is at work for another command", file=sys.stderr)
                free = claim(lock, wait=True)
            free.close()

    @contextmanager
    def printed(self) -> Iterator[None]:
        """What is printed meanwhile goes into its log."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("a", buffering=1) as file, redirect_stderr(file):
            yield


def trials_of(folder: Path, combinations: Sequence[Sequence[str]]) -> list[Trial]:
    """The trials of a sweep, each once; they are called by the words in which they differ."""
    shared = set(combinations[0]).intersection(*combinations)
    called = [" ".join(word for word in words if word not in shared) for words in combinations]
    trials = [
        Trial(folder, tuple(words), name or " ".join(words)) for words, name in zip(combinations, called, strict=True)
    ]
    return list({trial.id: trial for trial in trials}.values())


def run_composed(cfg: DictConfig) -> None:
    """The body of train.py: train what Hydra has composed; as a trial, where it has composed it for a sweep.

    Raises what training raises, but for the failures of a trial.
    """
    with deferred():
        from diffusion.apps.train import train

        _attempt(train, cfg)


def _attempt(train: Callable[[DictConfig], None], cfg: DictConfig) -> None:
    folder = os.environ.get(SWEEP)
    if HydraConfig.get().mode != RunMode.MULTIRUN or folder is None:
        train(cfg)
        return
    trial = Trial(Path(folder), tuple(HydraConfig.get().overrides.task))

    def recorded() -> None:
        with trial.recorded():
            trial.begins(Path(cfg.runs_dir) / cfg.experiment / trial.id)
            train(cfg)

    if not first_process():
        try:
            train(cfg)
        except (Stopped, Abandoned):
            raise
        except Exception as error:
            # What all processes meet is told and written down by the first one, and the next trial follows.
            if explain(error) is None:
                print(f"process {os.environ.get('RANK', '?')}:\n{traceback.format_exc()}", file=sys.stderr)
    elif os.environ[DRIVER] == str(os.getpid()):
        recorded()
    elif not (trial.folder / NO_MORE).exists():
        end_with_parent()
        end_without_parent()
        # The process that began the sweep has passed the signal on, and knows.
        with suppress(Stopped), trial.printed():
            recorded()
        end_without_parent()
