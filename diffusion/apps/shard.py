"""python -m diffusion shard: a data set as tar files, for dataset=shards and any reader of WebDataset."""

from __future__ import annotations

import csv
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from diffusion.apps.config import choice_of
from diffusion.apps.output import output_folder
from diffusion.errors import UserError
from diffusion.runs import datamodule_of
from diffusion.tasks.pictures import save_rows
from diffusion.tasks.reconstruct import evenly_spaced, members_of
from diffusion.tasks.sample import check_count

log = logging.getLogger("diffusion")

SHOWN = 10
"""Images of a row of the figure, and the most rows."""


def main(config: DictConfig) -> None:
    """Write the shards, index.json, metrics.json, cases.csv and samples.png into the output folder."""
    check_count(config.n)
    if config.shard_size <= 0:
        raise UserError(f"shard_size={config.shard_size}: give MB, more than 0")
    if config.encoding not in ("png", "npy"):
        raise UserError(f"encoding={config.encoding}: use npy, or png")
    if not config.dataset:
        raise UserError("shard needs dataset=NAME, or run=RUN_DIR, whose data are taken")
    if not (config.out or config.run):
        raise UserError("shard needs out=DIR, the folder for the shards")
    data = datamodule_of(OmegaConf.create({**config, "batch_size": 1}))
    folder = Path(config.out or Path(config.run) / "shard")
    if (path := getattr(data, "path", None)) and Path(path).resolve() == folder.resolve():
        raise UserError(f"out={folder} is where the data themselves lie: give another folder")
    data.setup()
    out = output_folder(folder, config.overwrite)
    start = time.perf_counter()
    options = {key: config[key] for key in ("n", "seed", "shard_size", "encoding")}
    metrics = write_results(out, data.write_shards(out, **options), start)
    show(out)
    shards = sum(metrics["shards"].values())
    log.info("%d samples in %d shards, %.0f a second: %s", metrics["n"], shards, metrics["images_per_second"], out)


def show(out: Path) -> None:
    """samples.png: training images of each class, of the first ones where there are many, as they are read back."""
    with tempfile.TemporaryDirectory() as cache:
        data = instantiate(choice_of("dataset", "shards"), path=str(out), cache=cache)
        train = data.split("train")
        members = members_of(train.labels, data.spec) or {"train": torch.ones(len(train), dtype=torch.bool)}
        rows = {name: some.nonzero().flatten() for name, some in list(members.items())[:SHOWN]}
        groups = {name: some[evenly_spaced(len(some), SHOWN)] for name, some in rows.items()}
        images = train.take(torch.cat(list(groups.values()))).eight_bit().images
    parts = images.split([len(group) for group in groups.values()])
    save_rows(dict(zip(groups, parts, strict=True)), out / "samples.png")


def write_results(out: Path, index: dict[str, Any], start: float) -> dict[str, Any]:
    """metrics.json, and cases.csv with one row for each shard."""
    seconds, splits = time.perf_counter() - start, index["splits"]
    samples = {name: sum(shard["samples"] for shard in shards) for name, shards in splits.items()}
    n, size = sum(samples.values()), sum(shard["bytes"] for shards in splits.values() for shard in shards)
    metrics = {
        "n": n,
        "samples": samples,
        "shards": {name: len(shards) for name, shards in splits.items()},
        "bytes": size,
        "bytes_per_sample": round(size / n, 1),
        "shape": list(index["shape"]),
        "bits": index["bits"],
        "encoding": index["image"],
        "fingerprint": index["fingerprint"],
        "seconds": round(seconds, 3),
        "images_per_second": round(n / seconds, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    with (out / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["shard", "split", "samples", "bytes", "md5"])
        for name, shards in splits.items():
            rows.writerows(
                [shard["name"], name, *(shard[key] for key in ("samples", "bytes", "md5"))] for shard in shards
            )
    return metrics
