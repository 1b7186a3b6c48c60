"""The loop of a search: take a trial, train it in a process, follow its metric, stop it or note what became of it."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from diffusion.apps.cli import suggest
from diffusion.apps.trials import trial_id
from diffusion.apps.tune.attempt import Attempt, environment_of, was_stopped
from diffusion.apps.tune.page import save_page, save_table
from diffusion.apps.tune.search import Search, Taken
from diffusion.apps.tune.space import Params, words_of
from diffusion.callbacks import Budget, StopSignals
from diffusion.errors import GateFailed, Stopped, UserError

POLL = 0.2
"""Seconds between two looks at the processes."""
DEATHS = 5
"""How often in a row a trial's process may be killed without getting on."""
FAILURES = 3
"""Failures, before any trial is complete, after which something is wrong with all of them."""


class Driver:
    """Works on a study, with `workers` processes at a time, until it has `trials` trials.

    words: of train.py, the same for all trials, which compose to `cfg`, with the limits `budget`
    options: trials, workers and metric
    """

    def __init__(
        self,
        search: Search,
        words: Sequence[str],
        cfg: DictConfig,
        budget: Budget,
        options: DictConfig,
        signals: StopSignals,
    ):
        self.search, self.words, self.cfg, self.budget, self.signals = search, words, cfg, budget, signals
        self.total, self.workers, self.metric = options.trials, options.workers, options.metric
        self.working: dict[int, Attempt] = {}  # by slot, in 0 ... workers - 1
        self._deaths: dict[int, tuple[float, int]] = {}  # by trial: the step it had come to, how often it ended there
        self._failures = 0
        self._console = Console(stderr=True)

    def run(self) -> None:
        """Until no trial is left. Raises Stopped after a signal, GateFailed or UserError for what is wrong with all."""
        self._began, self._before = time.monotonic(), len(self._finished())
        self._say(f"study {self.search.folder}: {self._before} of {self.total} trials are done")
        columns = TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}")
        try:
            with Progress(*columns, console=self._console) as bar:
                task = bar.add_task("trials", total=1.0, text="")
                while not self.signals.received and self._fill():
                    for slot in list(self.working):
                        self._follow(slot)
                    bar.update(task, completed=self._share(), text=self._left())
                    time.sleep(POLL)
        finally:
            self._end()
        if self.signals.received:
            raise Stopped(f"search stopped by {self.signals.received.name}: the same command goes on")
        self._conclude()

    def _fill(self) -> bool:
        """Give every free slot a trial, while there are some; whether any is at work."""
        for slot in range(self.workers):
            if slot not in self.working and (trial := self.search.take(self.total)):
                told = environment_of(slot, self.workers, self.cfg.accelerator.devices, self.search.folder)
                words, log = [*self.words, *words_of(trial.params)], self.search.log(trial.number)
                self.working[slot] = Attempt(trial, words, self._run_of(trial.params), log, told)
        return bool(self.working)

    def _run_of(self, params: Params) -> Path:
        experiment = params.get("experiment", self.cfg.experiment)
        return Path(self.cfg.runs_dir) / experiment / trial_id([*self.words, *words_of(params)])

    def _follow(self, slot: int) -> None:
        """Report what is new of a trial; stop it if it is worse than the others; where it has ended, note how."""
        attempt = self.working[slot]
        status, trial = attempt.poll(), attempt.trial
        if self.search.report(trial.number, attempt.news(self.metric)) and status is None:
            attempt.stop()
        if status is None:
            return
        del self.working[slot]
        if was_stopped(status) and not attempt.stopped and self._may_go_on(attempt):
            trial.lock.close()
            return
        values = attempt.column(self.metric)
        if status == 0 and not values and not self.search.ranked():
            names = [name for name in attempt.rows[-1] if "/" in name] if attempt.rows else []
            raise UserError(f"metric={self.metric}: the trials log no such column; {suggest(self.metric, names)}")
        facts = {"run": str(attempt.run.relative_to(self.cfg.runs_dir)), "seconds": attempt.last("elapsed_seconds")}
        if status == 0 and values:
            state, value = TrialState.COMPLETE, list(values.values())[-1]
        elif was_stopped(status) and attempt.stopped:
            state, value = TrialState.PRUNED, None
        else:
            state, value = TrialState.FAIL, None
            facts["error"] = attempt.why(status) if status else f"it logged no {self.metric}"
        self.search.finish(trial, state, value, **facts)
        self._tell(trial, value, facts.get("error"))
        self._save()
        if state == TrialState.FAIL and not self.search.ranked():
            self._failures += 1
            if self._failures == FAILURES:
                raise GateFailed(
                    f"{FAILURES} trials failed and none is complete; the last: {facts['error']}; if it is no fault of "
                    f"theirs, remove {self.search.folder} and give the same command again"
                )

    def _may_go_on(self, attempt: Attempt) -> bool:
        """Whether a trial that was killed is taken up again: not where it dies at the same step time and again."""
        step, number = attempt.last("step"), attempt.trial.number
        before, times = self._deaths.get(number, (step, 0))
        self._deaths[number] = (step, times + 1 if before == step else 1)
        return self._deaths[number][1] < DEATHS

    def _end(self) -> None:
        """Let the trials at work save and end, for a later driver to take them up."""
        for attempt in self.working.values():
            attempt.stop()
        while any(attempt.poll() is None for attempt in self.working.values()):
            time.sleep(POLL)
        for attempt in self.working.values():
            attempt.trial.lock.close()
        self._save()

    def _finished(self) -> list[FrozenTrial]:
        return [trial for trial in self.search.trials if trial.state.is_finished()]

    def _share(self) -> float:
        """Of what was left to do, how much is done."""

        def share(attempt: Attempt) -> float:
            step, seconds = attempt.last("step"), attempt.last("elapsed_seconds")
            return max(step / (self.budget.max_steps or math.inf), seconds / (self.budget.max_seconds or math.inf))

        done = len(self._finished()) - self._before + sum(min(1.0, share(each)) for each in self.working.values())
        return min(1.0, done / max(1, self.total - self._before))

    def _left(self) -> str:
        share = self._share()
        parts = [f"{len(self._finished())}/{self.total}"]
        if ranked := self.search.ranked():
            parts.append(f"best {ranked[0].value:.4g}")
        if share > 0:
            left = (time.monotonic() - self._began) * (1 - share) / share
            parts.append(f"{timedelta(seconds=round(left))} left")
        return "  ".join(parts)

    def _tell(self, trial: Taken, value: float | None, error: str | None) -> None:
        became = f"failed: {error}" if error else "pruned" if value is None else f"{self.metric} {value:.6g}"
        self._say(f"trial {trial.number}: {became}  ({' '.join(words_of(trial.params))})  {self._left()}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _save(self) -> None:
        save_table(self.search)
        save_page(self.search, self.total)

    def _conclude(self) -> None:
        """Say what was found. Raises GateFailed if no trial is complete."""
        ranked, finished = self.search.ranked(), self._finished()
        if not ranked and finished:
            first = next(trial for trial in finished if trial.state == TrialState.FAIL)
            raise GateFailed(f"all {len(finished)} trials failed; trial {first.number}: {first.user_attrs['error']}")
        if elsewhere := len(self.search.trials) - len(finished):
            self._say(f"{elsewhere} trials are at work in other processes, which will bring the page up to date")
        if ranked:
            best, words = ranked[0], words_of(ranked[0].params)
            self._say(f"best: trial {best.number}, {self.metric} {best.value:.6g}, by {' '.join(words)}")
            self._say("draw samples of it, or train with it:")
            run = Path(self.cfg.runs_dir) / best.user_attrs["run"]
            self._say(f"  python -m diffusion sample run={shlex.quote(str(run))}")
            self._say(f"  {shlex.join(['python', 'train.py', *self.words, *words])}")
        self._say(str(self.search.page))
