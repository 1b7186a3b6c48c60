"""python train.py -m: the trials of a sweep, those that are not finished yet, and a table of them all."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig

from diffusion.apps.cli import Passing, deferred, suggest
from diffusion.apps.config import check_types
from diffusion.apps.folders import alone_in
from diffusion.apps.launchers import DRIVER, SWEEP, first_process, launched
from diffusion.apps.sweep_signals import passed_on
from diffusion.apps.trials import (
    FAILED,
    FINISHED,
    OTHER_LOSS,
    RUNNING,
    STOPPED,
    Trial,
    run_composed,
    sweep_name,
    trials_of,
)
from diffusion.errors import GateFailed, Stopped, UserError

LOCK = ".lock"


class Sweep(Callback):
    """Takes the place of Hydra's basic sweeper: all combinations of the values, by any launcher, but with a memory.

    A trial's run_id is derived from its overrides, so the same command skips what is finished, resumes what was cut,
    and tries again what failed. A trial that fails does not end the sweep. At the end RUNS_DIR/sweeps/NAME holds
    sweep.csv and sweep.html.

    metric: the column of metrics.csv by whose last value the trials are ranked; None: eval/kid where they have it, else
        val/loss
    highest: whether its highest value is the best; the lowest is otherwise
    """

    def __init__(self, metric: str | None = None, highest: bool = False):
        self.metric, self.highest = metric, highest

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Run what is left of the sweep, and leave Hydra, whose own sweeper has nothing left to do.

        What it raises arrives at `cli.run`: UserError for what no trial could run with, and for a metric that none has,
        GateFailed if some have failed, and Stopped after a signal, to this process or to a trial.
        """
        if config.hydra.sweeper._target_ == f"{BasicSweeper.__module__}.{BasicSweeper.__name__}":
            with deferred():
                self._run(config)
            raise Passing

    def _run(self, config: DictConfig) -> None:
        ready = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        given = list(config.hydra.overrides.task)
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*ready, *given])
        for override in overrides:
            key, sweeps = override.key_or_group, override.is_sweep_override()
            if key == "run_id":
                raise UserError("run_id= with -m: the trials make their own ids from their overrides; leave it out")
            if sweeps and key.split(".")[0] in ("runs_dir", "logger"):
                raise UserError(f"{override.input_line}: what differs in {key} alone is one trial; give one value")
            if sweeps and not override.is_discrete_sweep():
                raise UserError(
                    f"{override.input_line}: a sweep tries every value, and these have no end; let "
                    f"`python -m diffusion tune {shlex.join(given)}` search among them"
                )
        # Of two words for one key the later one counts.
        last = {override.get_key_element(): override for override in overrides}.values()
        words = [override.input_line for override in last if override.input_line in given]
        swept = [override.input_line for override in last if override.is_sweep_override()]
        folder = Path(config.runs_dir) / "sweeps" / sweep_name(words, swept)
        (combinations,) = BasicSweeper.split_arguments(overrides, None)
        trials = trials_of(folder, combinations)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        launch = launcher_of(config, context)
        check(trials, config, context)
        os.environ |= {SWEEP: str(folder), DRIVER: str(os.getpid())}
        if not first_process():
            launch([trial for trial in trials if not trial.finished])
            return
        with alone_in(folder / LOCK, "sweep"), passed_on(trials):
            _wait_for_others(trials)
            for trial in trials:
                trial.adopt()
            left = [trial for trial in trials if not trial.finished]
            _say(f"sweep {folder}: {len(trials)} trials, {len(trials) - len(left)} of them finished before")
            try:
                launch(left)
            finally:
                if any(trial.status for trial in trials):
                    from diffusion.apps.sweep_results import save_results

                    save_results(folder, trials, self.metric, self.highest)
        self._conclude(trials, swept)

    def _conclude(self, trials: Sequence[Trial], swept: Sequence[str]) -> None:
        """Raise what the command is to end with, or say what is to be known of the ranking."""
        from diffusion.apps.sweep_results import ranked

        if failed := [trial for trial in trials if trial.status == FAILED]:
            first = f"{failed[0].called}: {failed[0].read()['error']}"
            raise GateFailed(f"{len(failed)} of {len(trials)} trials failed, the first of them, {first}")
        if stopped := sum(trial.status == STOPPED for trial in trials):
            raise Stopped(f"{stopped} of {len(trials)} trials were stopped: the same command goes on")
        rows, metric = ranked(trials, self.metric, self.highest)
        there = {name for row in rows for name in row.last}
        if there and metric not in there:
            raise UserError(f"hydra.callbacks.sweep.metric={metric}: no trial has it; {suggest(metric, sorted(there))}")
        groups = {word.lstrip("+~").partition("=")[0] for word in swept} & {"experiment", *OTHER_LOSS}
        if groups and not metric.startswith("eval/"):
            advice = "callbacks.evaluation.every_n_steps=500 ranks by the images"
            _say(f"{metric} means something else for each {' and '.join(sorted(groups))}: {advice}")


def launcher_of(config: DictConfig, context: HydraContext) -> Callable[[Sequence[Trial]], None]:
    """What runs trials to their end by the launcher that the config names, Hydra's or ours for Slurm."""
    target = config.hydra.launcher._target_
    if target.startswith("diffusion."):
        launcher = instantiate(config.hydra.launcher, on_gpus=config.accelerator.accelerator in ("gpu", "cuda"))
    else:
        launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=context, task_function=run_composed
        )

    def one_by_one(trials: Sequence[Trial]) -> None:
        began = time.monotonic()
        for number, trial in enumerate(trials):
            if first_process():
                left = f", {_clock((time.monotonic() - began) * (len(trials) / number - 1))} left" if number else ""
                _say(f"trial {number + 1} of {len(trials)}{left}: {trial.called}")
            launcher.launch([list(trial.words)], initial_job_idx=number)

    def all_at_once(trials: Sequence[Trial]) -> None:
        if trials:
            with _watched(trials):
                launcher.launch([list(trial.words) for trial in trials], initial_job_idx=0)

    return one_by_one if isinstance(launcher, BasicLauncher) else all_at_once


def check(trials: Sequence[Trial], config: DictConfig, context: HydraContext) -> None:
    """Compose every trial, so that a mistake in one is known before the first begins.

    Raises UserError for a trial of several devices whose processes nobody would start.
    """
    started = launched() > 1 or "slurm" in config.hydra.launcher._target_.lower()
    for trial in trials:
        composed = context.config_loader.load_sweep_config(config, list(trial.words))
        choices = composed.hydra.runtime.choices
        check_types(composed, {group: name for group, name in choices.items() if not group.startswith("hydra/")})
        devices = composed.accelerator.devices
        if devices != 1 and not started:
            several = devices if isinstance(devices, int) and devices > 1 else 2
            command = f"torchrun --nproc-per-node={several} train.py {shlex.join(sys.argv[1:])}"
            raise UserError(
                f"-m with accelerator.devices={devices}: each process of a trial would begin the sweep anew. Let "
                f"torchrun start them, `{command}`, or Slurm, with accelerator=slurm hydra/launcher=slurm"
            )


def _wait_for_others(trials: Sequence[Trial]) -> None:
    """Trials whose driver was killed may still be saving what they have."""
    said = False
    while busy := [trial for trial in trials if trial.at_work]:
        if not said:
            _say(f"waiting for {len(busy)} trials that are still at work")
            said = True
        time.sleep(0.2)


@contextmanager
def _watched(trials: Sequence[Trial]) -> Iterator[None]:
    """Meanwhile a bar on a terminal, and a line for each trial that ends elsewhere."""
    from diffusion.apps.output import progress

    before, called = {trial.id: trial.read() for trial in trials}, {trial.id: trial.called for trial in trials}
    over = threading.Event()

    def watch() -> None:
        ended: set[str] = set()
        with progress() as bar:
            task = bar.add_task("trials", total=len(trials))
            while True:
                last = over.is_set()
                known = {trial.id: trial.read() for trial in trials}
                for name, facts in known.items():
                    if name not in ended and facts != before[name] and facts.get("status") in (FINISHED, FAILED):
                        ended.add(name)
                        _say(f"{facts['status']}: {called[name]}" + (f": {facts['error']}" if facts["error"] else ""))
                running = sum(facts.get("status") == RUNNING for facts in known.values())
                bar.update(task, completed=len(ended), description=f"{running} trials at work")
                if last:
                    return
                over.wait(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
