"""The types of the root config, and how a config is composed. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from diffusion.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"


def readable(words: Sequence[str]) -> list[str]:
    """A command's words, with quotes around paths that Hydra takes for more than a text, as run=runs/a/lr=1,seed=2."""
    plain = re.compile(r"""(?P<key>[^=]+)=(?P<path>[^'"\[{(]*/[^'"\[\]{}()]*)""")
    found = [plain.fullmatch(word) for word in words]
    return [
        f"{match['key']}='{match['path']}'" if match and set(match["path"]) & set("=, ") else word
        for match, word in zip(found, words, strict=True)
    ]


@dataclass
class CheckpointConfig:
    every_n_steps: int = 500


@dataclass
class TrainerConfig:
    max_steps: int | None = None
    max_time: str | None = None
    validate_every_n_steps: int = 500
    log_every_n_steps: int = 50
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 1.0


@dataclass
class Config:
    """What train.yaml holds; a value of another type, or an unknown key, is refused when the config is composed."""

    experiment: str = MISSING
    seed: int = 0
    runs_dir: str = "runs"
    run_id: str | None = None
    resume: str = "auto"
    batch_size: int = 64
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    model: Any = MISSING
    network: Any = MISSING
    scheduler: Any = MISSING
    parameterization: Any = MISSING
    objective: Any = MISSING
    augmentation: Any = None
    sampler: Any = MISSING
    grid: Any = MISSING
    guidance: Any = None
    codec: Any = MISSING
    control: Any = None
    perceptual: Any = None
    discriminator: Any = None
    extractor: Any = MISSING
    dataset: Any = MISSING
    accelerator: Any = MISSING
    optimizer: Any = MISSING
    finetune: Any = MISSING
    logger: Any = None
    callbacks: Any = MISSING


ConfigStore.instance().store("schema", Config)


def training_config(words: Sequence[str]) -> DictConfig:
    """What train.py composes of these words of its command line; Hydra's own part is in HydraConfig, as there.

    Raises what Hydra raises; `cli.explain` makes a line of it.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(words), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    choices = config.hydra.runtime.choices
    OmegaConf.set_struct(config, False)
    config.experiment = choices.experiment
    del config["hydra"]
    OmegaConf.set_struct(config, True)
    return config


def choice_of(group: str, name: str) -> DictConfig:
    """What conf/GROUP/NAME.yaml holds, on top of the choices of its group that it builds on."""
    loaded = OmegaConf.load(CONF / group / f"{name}.yaml")
    bases = [base for base in loaded.pop("defaults", []) if base != "_self_"]
    return OmegaConf.merge(*(choice_of(group, base) for base in bases), loaded)


OPEN = ("experiment", "sweep", "accelerator")
"""Groups that are not a part of the config, and those whose values Lightning takes in many types, and checks itself."""


def check_types(config: DictConfig, choices: Mapping[str, str]) -> None:
    """Hold the keys of every group to the types that they have in the chosen yaml. Raises UserError.

    choices: group -> name, as Hydra has it in runtime.choices.
    """
    for group, choice in choices.items():
        if group not in OPEN and (CONF / group / f"{choice}.yaml").exists():
            check_type(group, choice_of(group, choice), config[group])


def check_type(key: str, default: Any, value: Any) -> None:
    """Raises UserError unless `value` has the type of `default`; in containers, item by item."""
    if isinstance(default, DictConfig) and isinstance(value, DictConfig):
        for name in default.keys() & value.keys():
            check_type(f"{key}.{name}", default[name], value[name])
    elif isinstance(default, ListConfig) and isinstance(value, (list, ListConfig)):
        for item in value if default else ():
            check_type(key, default[0], item)
    elif default is not None:
        types, wanted = ACCEPTED[type(default)]
        if not isinstance(value, types) or isinstance(value, bool) is not isinstance(default, bool):
            raise UserError(f"{key}={value}: give {wanted}")


ACCEPTED = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a text (in quotes, if it reads as a number)"),
    ListConfig: ((list, ListConfig), "a list such as [1,2]"),
    DictConfig: (DictConfig, "its keys one by one"),
}
