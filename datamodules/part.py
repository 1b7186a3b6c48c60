"""Samples that are at hand, as a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datamodules.arrays.split import Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataSpec


class Part(ImageDataModule):
    """Splits in memory.

    names: of the samples of each split, or None
    spec, fingerprint: what is known of the whole data set that these are a part of; None: found in the splits
    """

    def __init__(
        self,
        source: str,
        splits: Mapping[str, Split],
        names: dict[str, list[str]] | None = None,
        class_names: tuple[str, ...] | None = None,
        spec: DataSpec | None = None,
        fingerprint: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.source, self.class_names = source, class_names
        self._names = names
        if fingerprint is not None:
            self._facts["fingerprint"] = fingerprint
        if spec is None:
            self._held = dict(splits)
        else:
            self._splits, self._spec = dict(splits), spec

    def load(self) -> dict[str, Split]:
        return self._held

    @property
    def names(self) -> dict[str, list[str]] | None:
        return self._names
