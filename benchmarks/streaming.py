"""How fast images come from the disk, and how much memory that takes.

    python benchmarks/streaming.py [--images 200000] [--encoding npy] [--out FILE.json]

Images of 64 x 64 RGB, made up and free of noise, are written to a temporary folder as an uncompressed npz file, and
from it as shards. Each is then streamed through its data module's train_dataloader, two epochs, in a process of its
own, with 0, 1 and 2 workers. Printed are the images each second in either epoch (in the first one, each shard's
checksum and members are looked at too), and memory after the first batch, at its highest and at the end: resident
memory of the process that would train, and that of all processes, in which a page that several share counts once (PSS).
Nothing is trained meanwhile, and torch has one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import commands  # noqa: E402
from datamodules.base import ImageDataModule  # noqa: E402
from datamodules.npz import Npz  # noqa: E402
from datamodules.shards import Shards  # noqa: E402

SIZE, BLOCK, BATCH = 64, 1000, 64


def pictures(first: int, count: int) -> np.ndarray:
    """A disc on a slope of colours, another for each number; uint8 (count, 64, 64, 3)."""
    number = np.arange(first, first + count, dtype=np.float32)[:, None, None]
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    angle = number * 2.399963
    slope = (x * np.cos(angle) + y * np.sin(angle)) * 1.4
    disc = (x - 32 - 14 * np.sin(number)) ** 2 + (y - 32 - 14 * np.cos(number * 1.7)) ** 2 < (6 + number % 11) ** 2
    return (
        np.stack([128 + slope, 128 - slope, np.where(disc, 220.0, 60.0) + slope / 4], -1).clip(0, 255).astype(np.uint8)
    )


def write_npz(path: Path, images: int) -> None:
    """MedMNIST's layout, as numpy.savez writes it, a block at a time."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, n in {"train": images, "val": BLOCK, "test": BLOCK}.items():
            with archive.open(f"{name}_images.npy", "w", force_zip64=True) as file:
                about = {"descr": "|u1", "fortran_order": False, "shape": (n, SIZE, SIZE, 3)}
                np.lib.format.write_array_header_1_0(file, about)
                for first in range(0, n, BLOCK):
                    file.write(pictures(first, min(BLOCK, n - first)).tobytes())
            with archive.open(f"{name}_labels.npy", "w") as file:
                np.save(file, np.arange(n) % 11)


def memory() -> tuple[int, int]:
    """MiB that are resident of this process, and of it and its children together."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    return field("self/status", "VmRSS"), sum(field(f"{pid}/smaps_rollup", "Pss") for pid in pids)


def field(file: str, name: str) -> int:
    """A line of a file under /proc, in MiB."""
    lines = Path("/proc", file).read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024)


def stream(kind: str, path: str, workers: int, cache: str) -> dict[str, object]:
    """Two epochs of a source."""
    torch.set_num_threads(1)
    data: ImageDataModule = {"npz": Npz, "shards": Shards}[kind](
        path=path, memory=0.0, cache=cache, batch_size=BATCH, workers=workers
    )
    data.setup()
    batches = len(data.split("train")) // BATCH
    loader = iter(data.train_dataloader())
    used, rates, start = [], [], time.perf_counter()
    for _ in range(2):
        for i, batch in enumerate(islice(loader, batches)):
            assert batch["image"].shape == (BATCH, 3, SIZE, SIZE)
            if i % 100 == 0:
                used.append(memory())
        rates.append(round(batches * BATCH / (time.perf_counter() - start)))
        start = time.perf_counter()
    used.append(memory())
    ends = {
        name: {"start": values[0], "max": max(values), "end": values[-1]}
        for name, values in zip(("process", "all"), zip(*used, strict=True), strict=True)
    }
    return {"images_per_second": rates, "resident_mib": ends}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=commands.count, default=200_000)
    parser.add_argument("--encoding", default="npy", choices=["npy", "png"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", help="where the temporary folder is made: about 6 GB for 200,000 images")
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "streaming.json")
    parser.add_argument("--stream", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stream:
        kind, path, workers, cache = arguments.stream
        print(json.dumps(stream(kind, path, int(workers), cache)))
        return
    load = round(os.getloadavg()[0], 2)
    facts = {"images": arguments.images, "encoding": arguments.encoding, "load_before": load}
    commands.write(arguments.out, facts)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        write_npz(folder / "images.npz", arguments.images)
        source = Npz(path=str(folder / "images.npz"), memory=0.0, cache=temporary)
        source.std(), source.fingerprint()  # known from here on, and not counted as writing
        (folder / "shards").mkdir()
        start = time.perf_counter()
        splits = source.write_shards(folder / "shards", encoding=arguments.encoding)["splits"]
        seconds = time.perf_counter() - start
        written = {
            "images_per_second": round((arguments.images + 2 * BLOCK) / seconds),
            "shards": {name: len(files) for name, files in splits.items()},
            "bytes": sum(file["bytes"] for files in splits.values() for file in files),
        }
        print(f"written: {written}", flush=True)
        print("         images/s in epoch 1 and 2; MiB of the process, then of all: start, most, end")
        rows = []
        for kind, path in (("npz", "images.npz"), ("shards", "shards")):
            for workers in arguments.workers:
                with tempfile.TemporaryDirectory(dir=temporary) as cache:
                    words = [sys.executable, __file__, "--stream", kind, str(folder / path), str(workers), cache]
                    found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
                first, second = found["images_per_second"]
                used = ["  ".join(f"{value:>5}" for value in ends.values()) for ends in found["resident_mib"].values()]
                print(f"{kind:>8} {workers:>8} {first:>10} {second:>10}  {used[0]}   {used[1]}", flush=True)
                rows.append({"source": kind, "workers": workers, **found})
                commands.write(arguments.out, {**facts, "written": written, "streamed": rows})
    print(arguments.out)


if __name__ == "__main__":
    commands.run(main)
