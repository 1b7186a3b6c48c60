"""python -m diffusion tune: search among what train.py can be told; each trial is an ordinary run in its own process.

The study, in RUNS_DIR/studies/NAME, outlives its processes: the same command goes on with it, and takes part in it on
another machine that shares the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from diffusion import callbacks as cb
from diffusion.apps import train
from diffusion.apps.config import CONF, check_types, training_config
from diffusion.apps.trials import IGNORED, OTHER_LOSS
from diffusion.apps.tune.space import distributions, ends, size
from diffusion.errors import UserError
from diffusion.random import seed_of
from diffusion.tasks.sample import check_positive

log = logging.getLogger("diffusion")

OWN = ("run_id", "runs_dir", "resume")
"""Keys that are not to be searched: each trial is a run of its own, in one place, that goes on."""


def main(config: DictConfig) -> None:
    """Run what is left of the study's trials; write trials.csv and study.html into its folder.

    Raises UserError for what cannot be searched, Stopped after a signal, and GateFailed if every trial fails.
    """
    words, cfg = list(HydraConfig.get().overrides.task), config.train
    try:
        import plotly  # noqa: F401

        from diffusion.apps.tune.driver import Driver
        from diffusion.apps.tune.search import Search
    except ImportError as error:
        raise UserError(f'tune needs {error.name}: pip install -e ".[tune]"') from error
    check(config, words)
    budget = train.check(cfg)
    settings = settings_of(config, words)
    folder = Path(cfg.runs_dir) / "studies" / str(config.study or name_of(cfg.experiment, settings))
    if not folder.exists():
        check_space(config.space, words)
    if (most := size(distributions(config.space))) < config.trials:
        log.info("the space holds %d different trials, which is all of them", most)
        config.trials = int(most)
    with cb.StopSignals() as signals:
        Driver(Search(folder, settings), words, cfg, budget, config, signals).run()


def check(config: DictConfig, words: Sequence[str]) -> None:
    """Raises UserError for values out of range, and for a search that makes no sense."""
    check_positive(trials=config.trials, workers=config.workers)
    if config.warmup < 0:
        raise UserError(f"warmup={config.warmup}: give a number of steps, 0 or more")
    if config.direction not in ("minimize", "maximize"):
        raise UserError(f"direction={config.direction}: give minimize or maximize")
    if not config.space:
        ready = ", ".join(sorted(path.stem for path in (CONF / "space").glob("*.yaml")))
        raise UserError(
            f"there is nothing to search: give space= ({ready}), or a key, as in optimizer.lr=interval(a,b)"
        )
    for word in words:
        if word.startswith(("run_id=", "resume=")):
            raise UserError(f"{word}: each trial makes its own id, and goes on where it was; leave it out")
    for key in config.space:
        if key in OWN:
            raise UserError(f"{key}: it is the same for all trials; give one value")
        if key.split(".")[0] in OTHER_LOSS and not config.metric.startswith("eval/"):
            raise UserError(
                f"{key}: {config.metric} means something else in each trial; compare the images they make, by "
                "metric=eval/kid callbacks.evaluation.every_n_steps=500"
            )


def settings_of(config: DictConfig, words: Sequence[str]) -> DictConfig:
    """All that the values of the trials depend on: studies of the same settings are the same."""
    return OmegaConf.create(
        {
            "words": sorted(word for word in words if not word.startswith(IGNORED)),
            "space": dict(sorted(config.space.items())),
            **{key: config[key] for key in ("metric", "direction", "pruning", "warmup")},
            "seed": config.train.seed,
        }
    )


def name_of(experiment: str, settings: DictConfig) -> str:
    """EXPERIMENT-KEYS-HASH, of the last parts of the keys that are searched, and a hash of all settings."""
    keys = "+".join(key.rpartition(".")[2] for key in settings.space)
    return f"{experiment}-{keys[:80]}-{seed_of(OmegaConf.to_yaml(settings)):016x}"


def check_space(space: Mapping[str, str], words: Sequence[str]) -> None:
    """Compose the config with every choice and with both ends of every range. Raises what refuses the first."""
    for word in ends(distributions(space)):
        composed = training_config([*words, word])
        check_types(composed, HydraConfig.get().runtime.choices)
