"""Training images a second, memory, and the time to the first step: ours beside the libraries of diffusion models.

    pip install -e ".[benchmarks]"
    python benchmarks/training_speed.py                     # tissue, 28 x 28 and 64 x 64, fifteen minutes on two cores
    python benchmarks/training_speed.py --data FILE.npz     # images of a file in MedMNIST's layout, resized

Each tool trains in a process of its own, as benchmarks/peers.py has it, with networks that are matched in multiply-
adds. They take turns of some seconds on the same cores, and a step's time is the median over all turns: the machine's
speed may drift, the ratio does not. The ratio is that of the times of one multiply-add, of which the networks do the
same number to 1% (4% for denoising-diffusion-pytorch at 28 x 28). Memory is the most that a process has had: of a GPU
its tensors', else of the host's, with its loader's workers. The first step of denoising-diffusion-pytorch waits for the
images to be written as files, of which its Trainer reads. Status 1 where a library takes less than 1.25 times our time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands, networks, peers  # noqa: E402
from benchmarks.turns import measure  # noqa: E402
from datamodules.base import ImageDataModule  # noqa: E402
from datamodules.npz import Npz  # noqa: E402
from datamodules.tissue import Tissue  # noqa: E402
from diffusion.tasks.sample import to_uint8  # noqa: E402

MARGIN = 1.25
PEERS, TOOLS = peers.__file__, tuple(peers.TOOLS)


def images_of(datamodule: ImageDataModule, most: int | None = None) -> np.ndarray:
    """Training images, all or `most` of them from all over the split: uint8 (N, H, W, C)."""
    split = datamodule.split("train")
    places = torch.linspace(0, len(split) - 1, min(most or len(split), len(split)), dtype=torch.float64).long()
    parts = [to_uint8(split[part]["image"]) for part in places.split(1000)]
    return torch.cat(parts).permute(0, 2, 3, 1).numpy()


def resized(images: np.ndarray, side: int) -> np.ndarray:
    found = [
        np.asarray(Image.fromarray(image.squeeze()).resize((side, side), Image.Resampling.BICUBIC)) for image in images
    ]
    return np.stack(found).reshape(len(images), side, side, -1)


def save(path: Path, images: np.ndarray) -> None:
    """A file in MedMNIST's layout whose splits are all of these images, without labels."""
    part = images[:64]
    np.savez(path, train_images=images.squeeze(), val_images=part.squeeze(), test_images=part.squeeze())


def compare(path: Path, tools: list[str], match: str, batch_size: int, turns: int, seconds: float) -> dict[str, dict]:
    words = ["--data", str(path), "--batch-size", str(batch_size), "--match", match]
    found = measure({tool: [sys.executable, PEERS, tool, *words] for tool in tools}, turns, seconds, warm_up=5)
    for tool, row in found.items():
        row |= json.loads(subprocess.check_output([sys.executable, PEERS, tool, "--count", *words]))
        row["images_per_second"] = 1000 * batch_size / row["milliseconds"]
    networks.compare(found, {tool: row["milliseconds"] for tool, row in found.items()})
    return found


def table(rows: dict[str, dict]) -> str:
    heads = {"": 30, "ms a step": 10, "images/s": 10, "/ ours": 8, "M par.": 8, "M madds": 9, "GiB": 6, "1st step": 10}
    lines = ["".join(f"{head:>{width}}" for head, width in heads.items())]
    for name, row in rows.items():
        ratio = row.get("over_ours", float("nan"))
        lines.append(
            f"{name:30}{row['milliseconds']:>10.1f}{row['images_per_second']:>10.1f}{ratio:>8.2f}"
            f"{row['parameters_m']:>8.2f}{row['multiply_adds_m']:>9.1f}{row['peak_memory_bytes'] / 2**30:>6.2f}"
            f"{row['first_step_seconds']:>8.1f} s"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="by default the tissue that scikit-image brings")
    parser.add_argument("--sizes", type=commands.count, nargs="+", default=[28, 64])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--match", choices=networks.MATCHES, default="wide", help="the size of the networks")
    parser.add_argument("--batch-size", type=commands.count, default=32)
    parser.add_argument("--turns", type=commands.count, default=6)
    parser.add_argument("--seconds", type=commands.amount, default=8.0, help="of a turn")
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "training_speed.json")
    options = parser.parse_args()
    facts = {"versions": peers.versions(options.tools, options.batch_size)}
    facts |= {"match": options.match, "batch_size": options.batch_size}
    images = images_of(Npz(str(options.data)) if options.data else Tissue(), most=4000)
    commands.write(options.out, facts)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            path = Path(folder) / f"{size}.npz"
            save(path, resized(images, size))
            rows[size] = compare(path, options.tools, options.match, options.batch_size, options.turns, options.seconds)
            print(f"{size} x {size}, batch {options.batch_size}\n{table(rows[size])}\n", flush=True)
            commands.write(options.out, {**facts, "rows": rows})
    if faults := networks.faults(rows, MARGIN):
        raise SystemExit("; ".join(faults))


if __name__ == "__main__":
    commands.run(main)
