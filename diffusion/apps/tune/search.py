"""The trials of a study: which there are, who works on which, and what comes next. Optuna keeps them in one journal.

A study's folder holds journal.log, study.yaml (what was asked), trials/NUMBER.lock, which the process that works on the
trial holds for as long as it lives, and trials/NUMBER.log, what the trial printed. Any number of processes share it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from diffusion.apps.folders import making
from diffusion.apps.tune.space import Params, distributions, rounded
from diffusion.errors import UserError
from diffusion.files import claim, replace_file
from diffusion.random import seed_of

JOURNAL, SETTINGS, LOCK = "journal.log", "study.yaml", ".lock"
STARTUP = 5
"""Complete trials before the first is pruned."""


@dataclass(frozen=True)
class Taken:
    """A trial that this process works on, as nobody else does while `lock` is open."""

    number: int
    params: Params
    lock: IO


class Search:
    """A study in a folder, made if need be.

    settings: space (key -> sweep), direction, pruning, warmup, seed, and whatever else the values depend on

    Raises UserError if the folder holds a study of other settings, or cannot be made.
    """

    def __init__(self, folder: Path, settings: DictConfig):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.settings = folder, settings
        self.space = distributions(settings.space)
        with making(folder):
            (folder / "trials").mkdir(exist_ok=True)
        journal = folder / JOURNAL
        lock = JournalFileOpenLock(str(journal))
        with self._alone():
            self._begin()
            lock.acquire()
            _mend(journal)
            lock.release()
            self._storage = JournalStorage(JournalFileBackend(str(journal), lock))
            pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=settings.warmup)
            self.study = optuna.create_study(
                study_name=folder.name,
                storage=self._storage,
                direction=settings.direction,
                pruner=pruner if settings.pruning else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )

    @property
    def page(self) -> Path:
        return self.folder / "study.html"

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def take(self, total: int) -> Taken | None:
        """A trial to work on: one that a killed process has left, else the next, while there are fewer than `total`.

        total: at most as many as the space has different ones

        None if there is none: all are finished, or in other hands.
        """
        with self._alone():
            trials = self.trials
            for trial in trials:
                if trial.state == TrialState.RUNNING and (lock := self._claim(trial.number)):
                    if not self.trials[trial.number].state.is_finished():  # a moment ago
                        return Taken(trial.number, trial.params, lock)
                    lock.close()
            if len(trials) >= total:
                return None
            lock, params = self._claim(len(trials)), self._next(trials)
            self.study.add_trial(create_trial(state=TrialState.RUNNING, params=dict(params), distributions=self.space))
            return Taken(len(trials), params, lock)

    def report(self, number: int, values: Mapping[int, float]) -> bool:
        """Note a trial's metric at some steps; whether it is to be stopped, being worse than the others."""
        stop = False
        for step, value in values.items():
            self._storage.set_trial_intermediate_value(self._id(number), step, value)
            stop = stop or bool(self.study.pruner.prune(self.study, self.trials[number]))
        return stop

    def finish(self, trial: Taken, state: TrialState, value: float | None = None, **facts: Any) -> None:
        """Note what became of a trial."""
        for name, fact in facts.items():
            self._storage.set_trial_user_attr(self._id(trial.number), name, fact)
        self.study.tell(trial.number, value, state)
        trial.lock.close()

    def ranked(self) -> list[FrozenTrial]:
        """The complete trials, the best one first."""
        found = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return sorted(found, key=lambda trial: trial.value, reverse=self.settings.direction == "maximize")

    def log(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04}.log"

    def _next(self, trials: Sequence[FrozenTrial]) -> Params:
        """The values of the next trial, new ones: a function of those before it, of its number and of the seed."""
        seed = seed_of("tune", self.settings.seed, len(trials)) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # It keeps away from what is at work at the same time.
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        draft = optuna.create_study(direction=self.settings.direction, sampler=sampler)
        draft.add_trials(trials)
        known, params = [trial.params for trial in trials], rounded(draft.ask(self.space).params, self.space)
        draft.sampler = optuna.samplers.RandomSampler(seed)
        while params in known:
            params = rounded(draft.ask(self.space).params, self.space, digits=12)
        return params

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self.folder.name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _begin(self) -> None:
        """Write the settings down, or hold them against those of the study that is there."""
        path = self.folder / SETTINGS
        if not path.exists():
            replace_file(path, lambda temporary: OmegaConf.save(self.settings, temporary))
            return
        there, here = OmegaConf.to_container(OmegaConf.load(path)), OmegaConf.to_container(self.settings)
        if differing := [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]:
            said = "; ".join(f"{key}: {there.get(key)}, now {here.get(key)}" for key in differing)
            raise UserError(f"study {self.folder} was made with other settings ({said}): choose another study=")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process at a time hands out trials."""
        with claim(self.folder / LOCK, wait=True):
            yield

    def _claim(self, number: int) -> IO | None:
        return claim(self.folder / "trials" / f"{number:04}.lock")


def _mend(journal: Path) -> None:
    """Cut a last line off that a lost machine left unfinished: what is appended to it could never be read again."""
    if journal.exists():
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            with journal.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
