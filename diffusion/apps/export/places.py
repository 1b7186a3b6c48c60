"""A config that can be given away: it says nothing of where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def without_places(config: DictConfig) -> DictConfig:
    """The config with only the last part of every path: of texts that are absolute, or lie on this machine."""
    return OmegaConf.create(_stripped(OmegaConf.to_container(config, resolve=True)))


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_stripped(each) for each in value]
    return _name(value) if isinstance(value, str) else value


def _name(text: str) -> str:
    parts = text.replace("\\", "/").rstrip("/").split("/")
    absolute = text.startswith(("/", "~", "\\")) or text[1:3] in (":\\", ":/")
    place = len(parts) > 1 and "\n" not in text and (absolute or os.path.exists(Path(text)))
    return parts[-1] if place else text
