"""python -m diffusion TASK: find the task, compose its config, run it.

A task is a module of this package with `main(config)`, and conf/task/TASK.yaml with its keys and their defaults. A key
that is the name of a group (sampler, dataset, ...) is the run's own choice where the yaml holds null, unless another is
named. A task whose yaml has the key `train` takes the words of train.py beside its own: what they compose is there. One
that has the key `space` as well takes sweeps among them: they are there, key -> sweep.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from diffusion.apps.cli import keys_of, suggest, suggest_key
from diffusion.apps.config import CONF, check_type, choice_of, readable, training_config
from diffusion.errors import Helped, UserError

SHARED = ("sample", "evaluate", "audit", "utility")
"""The tasks whose images several processes draw together, started by torchrun; the first one does all else."""
log = logging.getLogger("diffusion")


def main(arguments: Sequence[str]) -> None:
    """Run the task that the first argument names; the others are key=value."""
    names = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m diffusion TASK run=RUN_DIR [key=value ...]\ntasks: {', '.join(names)}")
        print("doctor and tune take the words of train.py: python -m diffusion doctor experiment=NAME [key=value ...]")
        print("python -m diffusion TASK --help lists a task's keys")
        return
    task, overrides = arguments[0], arguments[1:]
    if task not in names:
        raise UserError(f"{task}: there is no such task; {suggest(task, names)}")
    path = CONF / "task" / f"{task}.yaml"
    if "-h" in overrides or "--help" in overrides:
        print(path.read_text(), end="")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = OmegaConf.load(path)
    if OmegaConf.is_missing(config, "train"):
        own, words, sweeps = divided(overrides, config)
        apply(config, (), parse(own))
        if "space" in config:
            config.space = space_of(config.space, words, sweeps)
        elif sweeps:
            key, sweep = next(iter(sweeps.items()))
            raise UserError(f"{key}={sweep}: one config is looked at at a time; give one value")
        config.train = training_config(words)
        call(task, config)
        return
    pairs = parse(readable(overrides))
    if OmegaConf.is_missing(config, "run") and "run" not in pairs:
        raise UserError(f"{task} needs run=RUN_DIR, the folder that train.py printed")
    if "samples" in config and not {"run", "samples", "compare"} & pairs.keys():
        raise UserError(f"{task} needs run=RUN_DIR, or samples=FILE.npz dataset=NAME: one of the two")
    groups = [key for key in config if (CONF / key).is_dir()]
    inherited = [group for group in groups if config[group] is None]
    for group in set(groups) - set(inherited):
        config[group] = chosen(group, config[group])
    if "run" in pairs:
        from diffusion.runs import Run

        run_config = Run.open(str(pairs["run"])).config
        for group in inherited:
            config[group] = run_config.get(group)
    apply(config, groups, pairs)
    if config.get("run") and config.get("sampler") and "levels" in (config.get("grid") or ()):
        config.grid.levels = config.grid.levels or tuned_levels(config)
    call(task, config)


def call(task: str, config: DictConfig) -> None:
    """Run the task; where it is refused or stopped, no empty folder of results stays behind."""
    module = import_module(f"diffusion.apps.{task}")
    from diffusion.apps.launchers import first_process, launched
    from diffusion.apps.output import tidy
    from diffusion.processes import joined
    from diffusion.processor import settle

    if launched() > 1 and task not in SHARED:
        raise UserError(f"{task} works in one process, and {launched()} were started: leave torchrun out")
    if not first_process():
        logging.getLogger().setLevel(logging.ERROR)
    settle()
    with tidy(), joined(), suppress(Helped):
        module.main(config)


def tuned_grid(directory: Path, sampler: DictConfig, steps: int) -> Path:
    """Where a run keeps the grid that `tune_grid` found for a sampler and a number of steps."""
    return directory / "grids" / f"{sampler._target_.rsplit('.', 1)[-1]}_{steps}.json"


def tuned_levels(config: DictConfig) -> list[float]:
    """The log-SNRs of the run's grid for the config's sampler and grid.steps. Raises UserError if it has none."""
    from diffusion.apps.drawn import choice

    path = tuned_grid(Path(config.run), config.sampler, config.grid.steps)
    try:
        kept = json.loads(path.read_text())
        levels = kept["levels"]
    except FileNotFoundError as error:
        name, there = path.stem.rpartition("_")[0], sorted(found.stem for found in path.parent.glob("*.json"))
        raise UserError(
            f"grid=optimised: {path} is not there (there are: {', '.join(there) or 'none yet'}); tune it first: "
            f"python -m diffusion tune_grid run={config.run} sampler={name} steps={config.grid.steps}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: tune it again with overwrite=true") from error
    if kept.get("guidance") != choice(config.guidance):
        log.warning("%s was tuned under another guidance: it may not be the best grid for this one", path)
    return levels


def divided(overrides: Sequence[str], config: DictConfig) -> tuple[list[str], list[str], dict[str, str]]:
    """The words that set keys of the task; the others, which are for train.py; and of these, key -> sweep."""
    own, words, sweeps = [], [], {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        mine = override.key_or_group in config and override.key_or_group != "train"
        if override.is_sweep_override() and not mine:
            key = override.get_key_element()
            sweeps[key] = override.input_line.removeprefix(f"{key}=")
        else:
            (own if mine else words).append(override.input_line)
    return own, words, sweeps


def space_of(name: object, words: Sequence[str], sweeps: dict[str, str]) -> dict[str, str]:
    """What is searched, key -> sweep: a ready space, changed by the sweeps and without what the words settle."""
    ready = dict(chosen("space", str(name))) if name is not None else {}
    settled = {word.split("=", 1)[0] for word in words}
    return {key: sweep for key, sweep in {**ready, **sweeps}.items() if key not in settled}


def parse(overrides: Sequence[str]) -> dict[str, object]:
    """key=value words, with Hydra's grammar of values."""
    pairs = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override() or override.is_add() or override.is_delete():
            raise UserError(f"{override.input_line}: give key=value")
        pairs[override.key_or_group] = override.value()
    return pairs


def apply(config: DictConfig, groups: Sequence[str], pairs: dict[str, object]) -> None:
    """Set the keys; those of `groups` name a choice, whose own keys can be set beside it.

    guidance=NUMBER is short for guidance=classifier_free guidance.scale=NUMBER. Raises UserError for a key that is
    not there or a value of another type.
    """
    for group in groups:
        if group in pairs:
            choice = pairs.pop(group)
            if group == "guidance" and isinstance(choice, (int, float)) and not isinstance(choice, bool):
                config[group] = chosen(group, "classifier_free")
                config[group].scale = float(choice)
            else:
                config[group] = chosen(group, str(choice))
    names = set(keys_of(config))
    for key, value in pairs.items():
        if key not in names:
            raise UserError(f"{key}: there is no such key; {suggest_key(key, config)}")
        default = OmegaConf.select(config, key, throw_on_missing=False)
        if isinstance(default, ListConfig) and type(value) in (int, float):
            value = [value]
        if (key, value) != ("n", None):  # all images, of whatever number there is by default; the apps check it
            check_type(key, default, value)
        OmegaConf.update(config, key, value)


def chosen(group: str, name: str) -> DictConfig:
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if name not in names:
        raise UserError(f"{group}={name}: there is no such choice; {suggest(name, names)}")
    return choice_of(group, name)
