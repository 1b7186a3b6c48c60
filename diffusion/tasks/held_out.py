"""The real images that a model has not seen, for an audit to hold against those that it has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from diffusion.metrics.copies import shares_sources

log = logging.getLogger("diffusion")


class Part(Protocol):
    """Images uint8 (N, C, *S), and their labels (N,) or (N, K), or None."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int: ...


class HeldOut:
    """The images of the splits that are held out from training, one after the other.

    splits: name -> number of images. left_out: splits that are not there, with the reason.
    images uint8 (N, C, *S), labels (N,) or (N, K), or None, and ids "SPLIT/PLACE".
    """

    def __init__(self, parts: Mapping[str, Part], left_out: dict[str, str]):
        self.splits = {name: len(part) for name, part in parts.items()}
        self.left_out = left_out
        self.images = torch.cat([part.images for part in parts.values()])
        labels = [part.labels for part in parts.values()]
        self.labels = None if labels[0] is None else torch.cat(labels)
        self.ids = [f"{name}/{place}" for name, part in parts.items() for place in range(len(part))]

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(cls, train: Part, val: Part, test: Part) -> HeldOut:
        """Val and test; but not one of them that shares its sources with the training split, with a warning."""
        parts = {"val": val, "test": test}
        shared = [
            name
            for name, other in (("val", "test"), ("test", "val"))
            if shares_sources(parts[name].images, parts[other].images, train.images)
        ]
        if len(shared) == len(parts):
            log.warning(
                "val and test are nearer to the training split than to each other: copies cannot be told for sure"
            )
            shared = []
        left_out = {}
        for name in shared:
            left_out[name] = "its images are nearer to training images than to those of the other held-out split"
            log.warning("the split %s is left out: %s; it may hold the same patients", name, left_out[name])
        return cls({name: part for name, part in parts.items() if name not in shared}, left_out)
