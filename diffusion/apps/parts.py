"""What training does where a batch does not fit into memory: the same step, of more and smaller parts."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffusion.errors import UserError

log = logging.getLogger("diffusion")

KEY = "trainer.accumulate_grad_batches"
SAID = ("out of memory", "not enough memory", "DefaultCPUAllocator", "ALLOC_FAILED", "bad_alloc")
"""What a plain RuntimeError says of it: of the CPU and of MPS, of the libraries of CUDA, of C++."""


class TooLarge(Exception):
    """A part of a batch does not fit into memory; a step of `parts` smaller ones may."""

    def __init__(self, parts: int):
        super().__init__(parts)
        self.parts = parts


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


def in_smaller_parts(trainer: pl.Trainer, cfg: DictConfig, begun_at: int) -> TooLarge:
    """What is to be raised where memory has run out in a run that began at a step: parts of half the size, or smaller.

    The parts of a step see the images, the noise and the noise levels that it sees as a whole, so that it is the same
    step. Raises UserError where that cannot be: the user has chosen the parts, a part is one image, there are other
    processes, a step has been made with these parts, or it is not a step that does not fit.
    """
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    if batches.ready == batches.completed:
        raise UserError(
            f"validation, of {cfg.batch_size} images at once, what is drawn after it, or the network itself does not "
            f"fit into memory (step {trainer.global_step}): begin another run with a smaller batch_size, "
            "callbacks.previews.n or network"
        )
    parts = trainer.accumulate_grad_batches
    share = cfg.batch_size // trainer.world_size
    size = share // parts
    if size == 1:
        raise UserError(
            "not even one image at once fits into memory: use network.checkpointing=true, smaller images, or a smaller "
            "network"
        )
    more = next(n for n in range(2 * parts, share + 1) if share % n == 0)
    given = any(o.lstrip("+").startswith(f"{KEY}=") for o in HydraConfig.get().overrides.task)
    if given or trainer.world_size > 1 or trainer.global_step > begun_at:
        raise UserError(
            f"{size} images at once do not fit into memory (step {trainer.global_step}): use {KEY}={more}, "
            "network.checkpointing=true, or in another run a smaller batch_size or network"
        )
    log.info("a batch of %d does not fit: %d parts of %d each", size, more, share // more)
    return TooLarge(more)
