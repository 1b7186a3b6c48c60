"""Checkpoints that survive a kill at any moment, and the stop that a signal asks for."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from diffusion.callbacks.signals import StopSignals
from diffusion.errors import Stopped, UserError
from diffusion.files import remove_temporaries, replace_file
from diffusion.processes import largest

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
EXPORTED = "model.safetensors"
"""The averaged weights of a run that was exported, in place of its checkpoints."""


class Checkpoints(pl.Callback):
    """Keeps last.ckpt, the one before it (previous.ckpt), and best.ckpt by the validation loss.

    A checkpoint of step n is written after everything else that belongs to step n: its log rows, and its validation
    where one is due. So a run that goes on from it repeats and skips nothing. When a signal has come, the state is
    saved and Stopped is raised.
    """

    def __init__(self, folder: Path, every_n_steps: int, signals: StopSignals):
        self.folder, self.every_n_steps, self.signals = folder, every_n_steps, signals
        self.best = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        # Lightning counts accumulated batches, and a step may be made of another number of them than before.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            more = checkpoint["global_step"] * trainer.accumulate_grad_batches - counts["processed"]
            counts.update({name: count + more for name, count in counts.items()})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has put its own handlers in place by now.
        self.signals.install()
        if trainer.is_global_zero:
            remove_temporaries(self.folder)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        validation_follows = trainer.should_stop or (batch_idx + 1) % trainer.val_check_batch == 0
        if not validation_follows:
            self._settled(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loss = float(trainer.callback_metrics["val/loss"])
        if loss < self.best:
            self.best = loss
            self._save(trainer, BEST)
        self._settled(trainer)

    def _settled(self, trainer: pl.Trainer) -> None:
        # One process may have been told alone: all stop, or the others would wait for it for ever.
        stopped = bool(largest(self.signals.received is not None))
        if trainer.global_step % self.every_n_steps == 0 or trainer.should_stop or stopped:
            self._save(trainer, LAST)
        if stopped and not trainer.should_stop:
            raise Stopped

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / name)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and keeps the last one as previous.ckpt until the new one is there.

    Raises UserError when it cannot be written, as on a full disk; what was there before stays.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, write, keep=path.with_name(PREVIOUS) if path.name == LAST else None)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(
                f"cannot write checkpoint {path}: {reason}; the checkpoints already there are whole: "
                "make room and start the same command again"
            ) from error


def is_whole(path: Path) -> bool:
    """Whether a checkpoint's file is complete."""
    return facts_of(path) is not None


def facts_of(path: Path) -> dict[str, Any] | None:
    """The step and the time spent that a checkpoint holds, by its own keys; None where it is damaged or absent.

    A file is read once, to its end; what was found is known for as long as it stays the same file.
    """
    return _facts(path, *_identity(path)) if path.exists() else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What was saved in a checkpoint that is whole, its tensors mapped, for reading alone.

    The last few are kept: a task asks for them again and again, and to parse one takes a tenth of a second and more.
    """
    return _content(path, *_identity(path))


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


# Not of _content: a run that goes on would keep its old checkpoint mapped, and its place on the disk, to its end.
@lru_cache(maxsize=256)
def _facts(path: Path, *identity: int) -> dict[str, Any] | None:
    try:
        # torch writes a zip archive, whose members carry check sums.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        # The check sums do not cover the archive's own directory. Mapped, this reads little more than that.
        facts = _of_use(_load(path))
    except Exception:  # a damaged file can make its readers raise anything
        return None
    return facts if damaged is None else None


@lru_cache(maxsize=8)
def _content(path: Path, *identity: int) -> dict[str, Any]:
    return _load(path)


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _of_use(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is used of a checkpoint after training, beside the averaged weights; a snapshot has none of it."""
    kept = content.get("callbacks", {})
    return {"global_step": content.get("global_step"), "callbacks": {"Budget": kept.get("Budget")}}


def save_weights(content: Mapping[str, Any], path: Path) -> None:
    """What is used of a checkpoint after training, as safetensors: the averaged weights, the step, the time spent."""
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in content["ema"].items()}
    facts = json.dumps(_of_use(content))
    replace_file(path, lambda file: save_file(weights, file, metadata={"format": "pt", "facts": facts}))


def load_weights(path: Path) -> dict[str, Any]:
    """What `save_weights` has written, as the checkpoint had it. Raises UserError for a file that is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return {"ema": weights} | json.loads(file.metadata()["facts"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged, or was not written by export: {' '.join(str(error).split())}") from error
