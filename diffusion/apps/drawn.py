"""The images of a run that evaluate, audit and utility judge: drawn once for each setting, and kept in the cache."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion import __version__
from diffusion.apps.output import leave_to_the_first, progress
from diffusion.codecs import fingerprint_of
from diffusion.files import replace_file
from diffusion.generative import GenerativeModel
from diffusion.processes import place
from diffusion.runs import Run
from diffusion.tasks.sample import of_label, sample

log = logging.getLogger("diffusion")

VERSION = 1
"""To be raised with every change of what a setting draws: files of another version are not used."""
KEPT_EVERY = 60.0
"""Seconds of drawing after which what is there is kept."""
PARTS = ("model", "network", "scheduler", "parameterization")


def in_proportion(n: int, counts: Sequence[int]) -> Tensor:
    """The classes of n images, int64 (n,), as often as `counts` have it: of any first m images each has its share.

    Image i is of the class whose part of [0, 1), as wide as its share, holds the fraction of (i + 1/2) times the golden
    ratio, a sequence that fills the interval evenly from the start (Kuipers and Niederreiter 1974, chapter 2).
    """
    ends = torch.tensor(counts, dtype=torch.float64).cumsum(0)
    points = (torch.arange(n, dtype=torch.float64) + 0.5) * ((math.sqrt(5) - 1) / 2) % 1.0
    return torch.searchsorted(ends / ends[-1], points, right=True).clamp(max=len(counts) - 1)


def draw(
    run: Run, config: DictConfig, counts: Sequence[int] | None, n: int, cache: Path, device: torch.device
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """The first n images uint8 (n, C, *S) of the run under the config's sampler, grid, guidance and seed.

    Also their classes, in the proportions of `counts` where that is given, and the receipt. Image i depends on
    (seed, i) and its class alone, so what the cache holds of this setting is only added to.
    """
    labels = None if counts is None else in_proportion(n, counts)
    generative = run.generative(device)
    receipt = {
        "run": str(run.directory),
        "experiment": run.config.experiment,
        "step": run.position(),
        "weights": run.fingerprint(),
        "ema": run.average,
        "data": run.config.data.fingerprint,
        "codec": run.config.data.codec_fingerprint,
        "sampler": choice(config.sampler),
        "grid": choice(config.grid),
        "guidance": choice(config.guidance),
        "labels": None if labels is None else "in the proportions of the training split",
        "seed": config.seed,
    }
    parts = [OmegaConf.to_container(run.config[part], resolve=True) for part in PARTS]
    # All that is asked of, be it the run's own network or one that guides it.
    networks = fingerprint_of(generative.denoiser.state_dict())
    setting = [networks, *(receipt[key] for key in ("codec", "sampler", "grid", "guidance", "seed"))]
    key = repr((VERSION, __version__, parts, float(run.config.data.std), setting, counts, device.type))
    path = cache / f"drawn_{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    images = kept(path, run.spec.shape)
    receipt["from_cache"] = min(n, len(images))
    if len(images) < n:
        images = _more(generative, config, labels, images, n, path)
    leave_to_the_first()
    return images[:n], labels, receipt


def _more(
    generative: GenerativeModel, config: DictConfig, labels: Tensor | None, images: Tensor, n: int, path: Path
) -> Tensor:
    shape, since = images.shape[1:], time.monotonic()
    rank, processes = place()
    with progress() as bar:
        task = bar.add_task("sampling", total=n, completed=len(images))
        while len(images) < n:
            stop = min(n, len(images) + processes * config.batch_size)
            new = sample(generative, shape, stop, of_label(labels), config.seed, config.batch_size, first=len(images))
            images = torch.cat([images, new])
            bar.update(task, completed=len(images))
            if rank == 0 and (len(images) == n or time.monotonic() - since > KEPT_EVERY):
                keep(path, images)
                since = time.monotonic()
    return images


def kept(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The images of this shape in a file of the cache; none, with a warning if it is damaged, where it has none."""
    none = torch.empty(0, *shape, dtype=torch.uint8)
    if not path.exists():
        return none
    try:
        with np.load(path) as arrays:
            images = torch.from_numpy(arrays["images"]).movedim(-1, 1).contiguous()
        if images.dtype is not torch.uint8 or images.shape[1:] != none.shape[1:]:
            raise ValueError("it holds other images")
    except Exception as error:  # a damaged file can make its readers raise anything
        log.warning("%s is of no use (%s): the images are drawn again", path, " ".join(str(error).split()))
        return none
    return images


def keep(path: Path, images: Tensor) -> None:
    """Write the images to the cache, unless another process has written more of them; without room, say so."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, images=images.movedim(1, -1).numpy())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(kept(path, tuple(images.shape[1:]))) < len(images):
            replace_file(path, write)
    except OSError as error:
        log.warning("%s could not be written (%s): the next task draws the images again", path, error.strerror)


def choice(node: DictConfig | None) -> dict[str, Any] | None:
    """A group's choice as a receipt has it: its class, and its keys."""
    if not node:
        return None
    return _named(OmegaConf.to_container(node, resolve=True))


def _named(values: dict[str, Any]) -> dict[str, Any]:
    name = {"name": values["_target_"].rsplit(".", 1)[-1]} if "_target_" in values else {}
    keys = {key: value for key, value in values.items() if not key.startswith("_")}
    return name | {key: _named(value) if isinstance(value, dict) else _finite(value) for key, value in keys.items()}


def _finite(value: Any) -> Any:
    """The value; of an infinite one its name, for JSON has none."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
