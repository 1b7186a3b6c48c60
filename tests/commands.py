"""The two commands in this process, and the one line with which they refuse."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hydra._internal.hydra import Hydra

from diffusion.apps import cli, tasks


def train_py(*arguments: str) -> None:
    """python train.py ARGUMENTS

    Hydra composes once for the mode that the config may set, which ours leaves open, and again: here it does so once.
    """
    from train import compose_and_train

    given = mock.patch.object(sys, "argv", ["train.py", *arguments])
    with given, mock.patch.object(Hydra, "get_mode", return_value=None):
        cli.run(compose_and_train)


def diffusion(*arguments: str) -> None:
    """python -m diffusion ARGUMENTS"""
    cli.run(lambda: tasks.main(arguments))


def save_samples(path: Path, images: torch.Tensor, labels: torch.Tensor | None = None) -> Path:
    """In the layout that `sample` writes."""
    arrays = {"images": images.movedim(1, -1).numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    np.savez(path, **arrays)
    return path


def refusal(capfd: pytest.CaptureFixture, command: Callable[..., None], *arguments: str) -> str:
    """The line that the command prints, as the only one; it must end with status 2."""
    capfd.readouterr()
    with mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0"}), pytest.raises(SystemExit) as ended:
        command(*arguments)
    printed = capfd.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.endswith("\n") and printed.err.count("\n") == 1, (
        printed.err
    )
    assert "Traceback" not in printed.err and "full_key" not in printed.err
    line = printed.err.removeprefix("error: ").rstrip("\n")
    assert len(line) > 10
    return line
