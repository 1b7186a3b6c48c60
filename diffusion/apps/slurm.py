"""Slurm: the trials of a sweep as its jobs, and the way back into its queue when a job's time is up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

from diffusion.apps.cli import EXIT_STOPPED
from diffusion.apps.launchers import SWEEP, first_process, job_id
from diffusion.apps.trials import FAILED, FINISHED, STOPPED, Trial
from diffusion.errors import Stopped, UserError

COMMON = ("timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb", "stderr_to_stdout")
"""Of submitit's parameters, those that are not Slurm's alone, whose names there begin with slurm_."""
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
)
"""States of jobs that will not run again."""


def requeue() -> None:
    """Put this process's job back into Slurm's queue, where it waits to be run again under its number."""
    done = subprocess.run(["scontrol", "requeue", job_id()], capture_output=True, text=True)
    if done.returncode:
        print(f"job {job_id()} cannot go back into the queue: {done.stderr.strip()}", file=sys.stderr)


def run_trial(folder: str, words: Sequence[str]) -> None:
    """What each process of a job does: the trial, as `python train.py WORDS` does it.

    A trial that is stopped ends the process by SystemExit, of which submitit keeps no result: the job may begin again.
    """
    trial = Trial(Path(folder), tuple(words))
    os.environ[SWEEP] = folder
    try:
        with ExitStack() as around:
            if first_process():
                around.enter_context(trial.printed())
                around.enter_context(trial.recorded())
            from diffusion.apps.config import training_config
            from diffusion.apps.train import train

            cfg = training_config(words)
            cfg.run_id = trial.id
            if first_process():
                trial.begins(Path(cfg.runs_dir) / cfg.experiment / trial.id)
            train(cfg)
    except Stopped:
        sys.exit(EXIT_STOPPED)


class Launcher:
    """Each trial is a job of its own, found again by its name: a driver that was killed takes its jobs up again.

    A job whose process died is submitted again, up to `retries` times without having ended; a trial that failed by an
    error of its own is not, nor one that was cancelled.

    retries: how often a trial is submitted again
    at_once: how many jobs may wait or run
    poll_seconds: between two looks at the queue
    signal_delay_s: how long before its end a job gets SIGUSR1, on which it saves and goes back into the queue
    on_gpus: whether the trials need GPUs, one a process unless gpus_per_node says otherwise
    parameters: submitit's, as in Hydra's own submitit launcher: partition, timeout_min, mem_gb, account, ...
    """

    def __init__(
        self,
        retries: int,
        at_once: int,
        poll_seconds: float,
        signal_delay_s: int,
        on_gpus: bool,
        gpus_per_node: int | None,
        **parameters: Any,
    ):
        self.retries, self.at_once = retries, at_once
        self.poll_seconds, self.signal_delay_s = poll_seconds, signal_delay_s
        gpus = parameters["tasks_per_node"] if on_gpus and gpus_per_node is None else gpus_per_node
        self.parameters = parameters | {"gpus_per_node": gpus}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Submit the trials, and wait until each has ended. Raises UserError where jobs cannot be submitted."""
        folder = Path(os.environ[SWEEP])
        waiting = [Trial(folder, tuple(words)) for words in job_overrides]
        executor, there = self._executor(folder), queue(patience=())
        live = [trial for trial in waiting if there.get(name_of(trial), ENDED[0]) not in ENDED]
        if live:
            print(f"{len(live)} trials are in the queue already", file=sys.stderr)
        waiting = [trial for trial in waiting if trial not in live]
        tries: Counter[Trial] = Counter()
        try:
            while waiting or live:
                while waiting and len(live) < self.at_once:
                    trial = waiting.pop(0)
                    self._submit(executor, trial)
                    tries[trial] += 1
                    live.append(trial)
                time.sleep(self.poll_seconds)
                there = queue()
                for trial in list(live):
                    state = there.get(name_of(trial))
                    if state is None or state in ENDED:
                        live.remove(trial)
                        if self._to_be_tried_again(trial, state, tries[trial]):
                            waiting.append(trial)
        except (Stopped, KeyboardInterrupt):
            print(f"{len(live)} jobs stay with Slurm, where the same command finds them", file=sys.stderr)
            raise
        return []

    def _to_be_tried_again(self, trial: Trial, state: str | None, tries: int) -> bool:
        """Whether a trial whose job has ended is to be submitted again; why not is written down."""
        if trial.status in (FINISHED, FAILED):
            return False
        if state == "CANCELLED":
            trial.note(status=STOPPED)
        elif tries > self.retries:
            trial.note(
                status=FAILED, error=f"its job ended {tries} times, the last time as {state}: see {trial.output}"
            )
        else:
            return True
        return False

    def _executor(self, folder: Path) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise UserError('hydra/launcher=slurm needs submitit: pip install -e ".[sweeps]"') from error

        given = {name: value for name, value in self.parameters.items() if value is not None}
        named = {name if name in COMMON else f"slurm_{name}": value for name, value in given.items()}
        # Slurm puts a preempted job back by itself. Of signals submitit would take USR2, and requeue without saving.
        own = {"signal": f"USR1@{self.signal_delay_s}", "requeue": True} | named.pop("slurm_additional_parameters", {})
        try:
            executor = submitit.AutoExecutor(folder / "slurm" / "%j", cluster="slurm")
            executor.update_parameters(**named, slurm_additional_parameters=own)
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise UserError(f"hydra/launcher=slurm: {' '.join(str(error).split())}") from error
        return executor

    def _submit(self, executor: Any, trial: Trial) -> None:
        import submitit

        executor.update_parameters(name=name_of(trial))
        try:
            executor.submit(run_trial, str(trial.folder.absolute()), trial.words)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise UserError(f"Slurm takes no job: {' '.join(str(error).split())}") from error


def name_of(trial: Trial) -> str:
    """The name of a trial's job: the trial's, and a digest of its folder, for sweeps of one name in two places."""
    return f"{trial.id}@{blake2b(str(trial.folder.absolute()).encode(), digest_size=4).hexdigest()}"


def queue(patience: Sequence[float] = (1, 5, 30, 60, 120)) -> dict[str, str]:
    """The state of the newest job of each name, as far as Slurm still knows it; of this user's jobs.

    patience: seconds before each further time that Slurm is asked, if it does not answer

    Raises UserError if it does not answer at last.
    """
    command = ["squeue", "--me", "--noheader", "--states=all", "--format=%A|%T|%j"]
    for pause in (*patience, None):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            break
        said = f"Slurm does not answer: {' '.join(done.stderr.split())}"
        if pause is None:
            raise UserError(f"{said}; jobs that are in its queue stay there, and the same command finds them")
        print(f"{said}; it is asked again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)
    jobs = sorted(line.split("|", 2) for line in done.stdout.splitlines())
    jobs.sort(key=lambda job: int(job[0]))
    return {name: state for _, state, name in jobs}
