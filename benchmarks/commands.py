"""What the commands share: numbers above 0, a file for the figures, and one line for a mistake."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.turns import Ended
from diffusion.apps import cli
from diffusion.errors import UserError
from diffusion.provenance import code, machine

FOLDER = Path(__file__).resolve().parents[1] / "runs" / "benchmarks"


def count(text: str) -> int:
    """Of an option: a whole number above 0."""
    return _above_0(int(text))


def amount(text: str) -> float:
    """Of an option: a number above 0."""
    return _above_0(float(text))


def _above_0(value: float) -> Any:
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{value}: give a number above 0")
    return value


def folder(text: str) -> Path:
    """Of an option: a folder, which stays the same one for a process that is started elsewhere."""
    return Path(text).resolve()


def write(path: Path, facts: dict[str, Any]) -> None:
    """Figures, machine and code as JSON; a command writes before it measures, so that a place for no file is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "code": code(), **facts}, indent=2) + "\n")


def run(main: Callable[[], None]) -> None:
    """Run a command and exit: after a mistake with one line and status 2."""

    before = os.environ.get("HYDRA_FULL_ERROR", "0")

    def body() -> None:
        os.environ["HYDRA_FULL_ERROR"] = before  # the commands that are started tell their mistakes in one line too
        try:
            main()
        except OSError as error:
            if error.strerror is None:  # Hydra's, of a choice that is not there, which `cli.run` explains
                raise
            raise UserError(f"{error.filename or 'a file'}: {error.strerror}") from error

    try:
        cli.run(body)
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(error.returncode)
    except Ended as error:
        sys.exit(str(error))
