"""The types of the root config, and how a config is composed. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

CONF = Path(__file__).resolve().parents[2] / "conf"


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
    sampler: Any = MISSING
    grid: Any = MISSING
    guidance: Any = None
    codec: Any = MISSING
    dataset: Any = MISSING
    accelerator: Any = MISSING
    optimizer: Any = MISSING
    logger: Any = None
    callbacks: Any = MISSING


ConfigStore.instance().store("schema", Config)
