"""Averages of the weights whose length can be chosen after training."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from diffusion.averages import combination, decay, exponent
from diffusion.callbacks.checkpoints import AtomicCheckpointIO, is_whole, read_checkpoint
from diffusion.errors import UserError
from diffusion.files import remove_temporaries
from diffusion.processes import dealt_like, whole

log = logging.getLogger(__name__)

GAMMAS = {length: exponent(length) for length in (0.05, 0.1)}
"""The two averages that are kept: their lengths, and their exponents."""
FIRST, SPACING = 20, 1.15
"""The step of the first snapshot, and how many times as late each is as the one before it."""
DOUBTFUL, WRONG = 0.1, 0.25
"""Shares of an average's profile that may be missed without a word, and with a warning."""
NEGLIGIBLE = 1e-6
"""A stored average that counts for less is not read."""


class PostHocEMA(pl.Callback):
    """Keeps two power-function averages of what the module calls `trained`, and stores snapshots of them.

    Of the snapshots `reconstructed` makes the average of any length. They lie evenly in the logarithm of the step, as
    the profiles scale with it: each is equally well reconstructed at any time, and which steps have one depends on no
    limit of the run. The newest `snapshots` are kept, FOLDER/STEP.ckpt, in half precision, by the process of rank zero;
    the averages themselves are in the checkpoint under "profiles". Both have a checkpoint's "global_step".

    Source: Karras et al. 2024, section 3.1 and algorithm 2. Raises UserError for a number of snapshots below 1.
    """

    def __init__(self, folder: Path, snapshots: int = 16):
        if snapshots < 1:
            raise UserError(f"callbacks.post_hoc_ema.snapshots={snapshots}: give a whole number; 0 keeps none")
        self.folder, self.snapshots = folder, snapshots
        self.averages: dict[float, dict[str, Tensor]] = {}
        self._seen = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not self.averages:
            named = dict(pl_module.trained.named_parameters())
            self.averages = {k: {name: p.detach().float().clone() for name, p in named.items()} for k in GAMMAS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for average in self.averages.values():
            average.update({name: dealt_like(average[name], p) for name, p in pl_module.trained.named_parameters()})
        self._seen = trainer.global_step
        if trainer.is_global_zero and self.folder.is_dir():
            remove_temporaries(self.folder)
            for step, path in stored(self.folder).items():
                if step > self._seen:  # the run was killed later than the checkpoint that it goes on from
                    path.unlink()

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step == self._seen:
            return  # an accumulated batch: the optimizer has not stepped
        self._seen = trainer.global_step
        weights = [p.float() for p in pl_module.trained.parameters()]
        for length, average in self.averages.items():
            torch._foreach_lerp_(list(average.values()), weights, 1 - decay(self._seen, GAMMAS[length]))
        if due(self._seen):
            halves = {k: {name: value.half().cpu() for name, value in a.items()} for k, a in self._whole().items()}
            if trainer.is_global_zero:
                self._store(halves)

    def _whole(self) -> dict[float, dict[str, Tensor]]:
        return {k: {name: whole(value) for name, value in average.items()} for k, average in self.averages.items()}

    def _store(self, halves: dict[float, dict[str, Tensor]]) -> None:
        content = {"global_step": self._seen, "profiles": halves}
        AtomicCheckpointIO().save_checkpoint(content, self.folder / f"{self._seen}.ckpt")
        for path in list(stored(self.folder).values())[: -self.snapshots]:
            path.unlink()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        checkpoint["profiles"] = self._whole()

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        profiles = checkpoint["profiles"].items()
        self.averages = {length: {name: value.clone() for name, value in a.items()} for length, a in profiles}


def due(step: int) -> bool:
    """Whether a step has a snapshot."""
    place = FIRST
    while place < step:
        place = math.ceil(place * SPACING)
    return place == step


def stored(folder: Path) -> dict[int, Path]:
    """The snapshots of a run, by their steps in order."""
    return dict(sorted((int(path.stem), path) for path in folder.glob("*.ckpt") if path.stem.isdigit()))


def reconstructed(checkpoint: Mapping[str, Any], folder: Path, length: float, at: float = 1.0) -> dict[str, Tensor]:
    """The weights averaged over a relative `length`, by name, float32, of a checkpoint and the snapshots before it.

    at: the share of the checkpoint's steps after which they are wanted, in (0, 1]; where it is below 1 the snapshot
    nearest to it. Raises UserError for values out of range, where there are no snapshots that they can be made of, and
    for a damaged one; warns where they are made badly.
    """
    exponent(length)
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 < at <= 1:
        raise UserError(f"at={at}: give a share of the training, above 0, up to 1")
    if "profiles" not in checkpoint:
        raise UserError(
            f"ema={length}: this run has kept no averages that it could be made of; train with "
            "callbacks.post_hoc_ema.snapshots=16, or leave ema= out"
        )
    last = checkpoint["global_step"]
    if last == 0:
        raise UserError(f"ema={length}: this run has not taken a step yet: train it first")
    paths = {step: path for step, path in stored(folder).items() if step < last}
    step = min([*paths, last], key=lambda step: abs(math.log(step / (at * last))))
    if step > 1.5 * at * last:
        raise UserError(
            f"at={at}: the first snapshot that this run still has is of step {step}, {step / last:.2g} of its {last} "
            "steps: give a later time"
        )
    places = [(other, kept) for other in [*paths, last] if other <= step for kept in GAMMAS]
    shares, missed = combination(
        [other for other, _ in places], [GAMMAS[kept] for _, kept in places], step, exponent(length)
    )
    if missed > DOUBTFUL:
        said = f"ema={length} at step {step}: the snapshots before it miss {missed:.0%} of this average"
        if missed > WRONG:
            raise UserError(f"{said}; ask for a length nearer to {' or '.join(map(str, GAMMAS))}, or a later step")
        log.warning("%s; lengths nearer to %s are met better", said, " and ".join(map(str, GAMMAS)))
    used = [(share, place) for share, place in zip(shares.tolist(), places, strict=True) if abs(share) > NEGLIGIBLE]
    profiles = {other: _profiles(paths[other]) for other in {other for _, (other, _) in used} - {last}}
    profiles[last] = checkpoint["profiles"]
    terms = [(share, profiles[other][kept]) for share, (other, kept) in used]
    return {name: sum(share * average[name].double() for share, average in terms).float() for name in terms[0][1]}


def _profiles(path: Path) -> dict[float, dict[str, Tensor]]:
    if not is_whole(path):
        raise UserError(f"snapshot {path} is damaged: remove it, and averages are made of the others")
    return read_checkpoint(path)["profiles"]
