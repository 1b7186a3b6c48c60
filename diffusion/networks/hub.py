"""Models of the diffusers library, an optional extra: from a folder, or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from diffusion.errors import UserError


def library(what: str) -> ModuleType:
    """The diffusers library, which `what` needs. Raises UserError where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f'{what} needs the diffusers library: pip install "diffusers>=0.35"') from error
    return diffusers


def load(kind: str, what: str, path: str, subfolder: str | None, part: str) -> nn.Module:
    """The model of class `kind` at path, float32 on the CPU.

    what: how a message names it; part: the subfolder in which a whole pipeline has it. Raises UserError where it is
    not there, is of another class, or lacks weights.
    """
    model = getattr(library(f"{what} {path}"), kind)
    path, subfolder, where = _place(path, subfolder, part)
    try:
        _check_kind(model.load_config(path, subfolder=subfolder), kind, where)
        network, report = model.from_pretrained(
            path, subfolder=subfolder, low_cpu_mem_usage=False, output_loading_info=True
        )
    except UserError:
        raise
    # What the library and those below it raise has no common base.
    except Exception as error:
        raise _unreadable(what, where, error) from error
    if report["missing_keys"]:
        raise UserError(
            f"{what} {where} lacks {len(report['missing_keys'])} of its weights, {report['missing_keys'][0]} "
            "among them: download it again"
        )
    return network.float()


def load_config(kind: str, what: str, path: str, subfolder: str | None, part: str) -> dict[str, Any]:
    """The keys with which a model of class `kind` is built anew; the arguments are those of `load`."""
    model = getattr(library(f"{what} {path}"), kind)
    path, subfolder, where = _place(path, subfolder, part)
    try:
        config = model.load_config(path, subfolder=subfolder)
    except Exception as error:
        raise _unreadable(what, where, error) from error
    _check_kind(config, kind, where)
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _place(path: str, subfolder: str | None, part: str) -> tuple[str, str | None, str]:
    """Path and subfolder as the library takes them, and both in words."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if subfolder is None and not (folder / "config.json").is_file() and (folder / part).is_dir():
            subfolder = part
        # Joined here, because the library would take the folder itself for a subfolder that is not there.
        path, subfolder = str(folder / (subfolder or "")), None
    return path, subfolder, f"{path}, subfolder {subfolder}" if subfolder else path


def _check_kind(config: dict[str, Any], kind: str, where: str) -> None:
    found = config.get("_class_name")
    if found != kind:
        article = "an" if kind[0] in "AEIO" else "a"
        raise UserError(f"{where} holds {found or 'no model'}, but {article} {kind} is needed: give another path")


def _unreadable(what: str, where: str, error: Exception) -> UserError:
    return UserError(
        f"{what} {where} could not be loaded ({' '.join(str(error).split())}): give a directory that "
        "holds one, or an id on the Hugging Face hub that is downloaded already or can be reached"
    )
