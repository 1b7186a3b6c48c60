"""How the run was trained, as a page says it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion.apps.report.results import NONE
from diffusion.callbacks.budget import Budget
from diffusion.runs import Run

PARTS = {
    "scheduler": "noise schedule",
    "parameterization": "parameterization",
    "objective": "objective",
    "augmentation": "augmentation",
    "perceptual": "perceptual loss",
    "discriminator": "discriminator",
    "codec": "codec",
    "sampler": "sampler",
    "grid": "time grid",
    "guidance": "guidance",
}


def recipe(run: Run, size: int | None, progress: str, data: dict[str, str]) -> list[tuple[str, str]]:
    """The settings that matter most, (what, value); `size` is the number of the network's parameters,
    `progress` what `trained` says."""
    config = run.config
    learnt_by = config.network or config.model.network
    rows = [
        ("model", f"{name_of(config.model)}, {'in pixels' if config.data.codec_fingerprint is None else 'in latents'}")
        if config.network
        else ("model", name_of(config.model)),
        ("network", described(learnt_by) + (f", {size:,} parameters" if size else "")),
    ]
    if config.model.get("loss"):
        rows.append(("loss", described(config.model.loss)))
    if config.model.get("teacher"):
        rows.append(("teacher", f"{config.model.teacher}, whose sampler, objective and guidance the student replaces"))
    rows += [(title, described(config[part])) for part, title in PARTS.items() if config.get(part)]
    rows += [
        ("optimizer", described(config.optimizer)),
        ("learning rate", f"warm-up {config.callbacks.learning_rate.warmup_steps} steps, then falling"),
        ("batch size", str(config.batch_size)),
        ("averaged weights", f"EMA, decay {config.callbacks.ema.decay:g}"),
        ("precision", f"{config.accelerator.precision}"),
        ("trained", progress),
        ("limits", limits(config.trainer)),
        ("seed", str(config.seed)),
    ]
    return rows + list(data.items())


def data_of(run: Run, datamodule: Any, reason: str | None) -> dict[str, str]:
    """What the run was trained on; `datamodule` is None where the data cannot be had."""
    spec = run.spec
    names = f" ({', '.join(spec.class_names)})" if spec.class_names else ""
    size = " \N{MULTIPLICATION SIGN} ".join(map(str, spec.shape[1:]))
    rows = {
        "data": datamodule.source if datamodule else described(run.config.dataset),
        "images": f"{size}, {spec.shape[0]} channel{'s' if spec.shape[0] > 1 else ''}",
        "classes": NONE if spec.classes is None else f"{spec.classes}{names}",
        "data fingerprint": run.config.data.fingerprint,
    }
    if datamodule:
        counts = {name: len(datamodule.split(name)) for name in ("train", "val", "test")}
        rows["counts"] = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    else:
        rows["counts"] = f"not at hand: {reason}"
    return rows


def described(node: DictConfig) -> str:
    """A choice of a group: its class, and its keys."""
    values = OmegaConf.to_container(node, resolve=True)
    name = name_of(node)
    settings = "; ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in values.items() if key[0] != "_")
    return f"{name} ({settings})" if name and settings else name or settings


def name_of(node: DictConfig) -> str:
    """The class or function that a choice names, without its module."""
    return str(node.get("_target_", "")).rsplit(".", 1)[-1]


def _text(value: object) -> str:
    if isinstance(value, dict):
        inner = dict(value)
        name = str(inner.pop("_target_", "")).rsplit(".", 1)[-1]
        settings = ", ".join(f"{key} {_text(each)}" for key, each in inner.items() if key[0] != "_")
        return f"{name} [{settings}]" if name and settings else name or settings
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return re.sub(r"e([+-])0*(\d)", r"e\1\2", f"{value:g}") if isinstance(value, float) else str(value)


def limits(trainer: DictConfig) -> str:
    """What ends the run."""
    ends = [] if trainer.max_steps is None else [f"{trainer.max_steps:,} steps"]
    ends += [] if trainer.max_time is None else [f"{trainer.max_time} (days:hours:minutes:seconds)"]
    return " or ".join(ends)


def trained(run: Run, position: tuple[int, dict[str, Any]] | None) -> tuple[str, bool]:
    """How far the run is, in words, and whether it has reached its end; position is its step and the budget's state."""
    if position is None:
        return "no checkpoint yet", False
    step, state = position
    budget = Budget.of(run.config.trainer)
    budget.load_state_dict(state)
    finished = budget.reached(step)
    how = ", ended because it had begun to copy" if budget.ended else "" if finished else ", not finished"
    return f"{step:,} steps in {timedelta(seconds=round(budget.elapsed()))}{how}", finished
