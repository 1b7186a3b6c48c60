"""How training and sampling grow: with the data, the batch, the resolution and the width; with evaluations and images.

    python benchmarks/growth.py          # forty minutes on two cores; --only data for a part

Training: processes that differ in one thing take turns on the same cores (benchmarks/turns.py), on images of noise,
which cost what real ones do. Data: 10^3 to 10^6 grey images of 28 x 28 in one file. Sampling: the time of one network
evaluation of one image, over numbers of evaluations and of images, and the most memory that a process has had which
draws so many, in batches of 64. Status 1 where images a second differ by more than 10% over the sizes of the data, the
time of an evaluation by more than 10%, or memory by more than 64 MiB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands  # noqa: E402
from benchmarks.sampling_speed import Draw, untrained  # noqa: E402
from benchmarks.training_speed import PEERS, save  # noqa: E402
from benchmarks.turns import in_turns, measure  # noqa: E402
from diffusion.processor import settle  # noqa: E402

SIZES = (10**3, 10**4, 10**5, 10**6)
BATCHES, SIDES, WIDTHS = (8, 16, 32, 64), (16, 32, 64), (16, 32, 48)
EVALUATIONS, IMAGES, BATCH = (5, 10, 20, 40), (64, 128, 256), 64
MANY = (64, 512, 4096)
TOLERANCE, MEMORY = 0.10, 64 * 2**20


def noise(n: int, side: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def trained(folder: Path, cases: dict[str, tuple[int, int, int, list[str]]], turns: int, seconds: float) -> dict:
    """cases: name -> number of images, their side, batch size, and further words of train.py."""
    commands = {}
    for name, (n, side, batch_size, words) in cases.items():
        path = folder / f"{n}-{side}.npz"
        if not path.exists():
            save(path, noise(n, side))
        commands[name] = [
            *(sys.executable, PEERS, "ours", "--data", str(path), "--match", "small", "--batch-size", str(batch_size)),
            *(["--set", *words] if words else []),
        ]
    rows = measure(commands, turns, seconds, warm_up=5)
    for name, row in rows.items():
        row["images_per_second"] = 1000 * cases[name][2] / row["milliseconds"]
    return rows


def drawing(steps: int) -> Draw:
    """What draws n images by `steps` evaluations each, of a network with its first weights."""
    from diffusion.networks import UNet

    torch.manual_seed(0)
    network = UNet(1, 1, (28, 28), channels=16, multipliers=(1, 2, 2), blocks=1, attention_size=8)
    return untrained(network, (1, 28, 28), steps, at_once=BATCH)


def sampled(repeat: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one evaluation of one image: for numbers of evaluations, and of images, in turns."""
    cases = {f"{steps} evaluations": (steps, BATCH) for steps in EVALUATIONS}
    cases |= {f"{n} images": (EVALUATIONS[1], n) for n in IMAGES}
    times = in_turns({name: partial(drawing(steps), n) for name, (steps, n) in cases.items()}, repeat)
    return {name: {"milliseconds": 1000 * times[name] / steps / n} for name, (steps, n) in cases.items()}


def peak_memory(n: int) -> int:
    """Bytes: the most that a process has had which draws n images."""
    program = f"from benchmarks.growth import draw_and_tell; draw_and_tell({n})"
    return int(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT))


def draw_and_tell(n: int) -> None:
    settle()
    drawing(2)(n)
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def spread(values: list[float]) -> float:
    return max(values) / min(values) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("data", "batch", "resolution", "width", "sampling")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--turns", type=commands.count, default=14)
    parser.add_argument("--seconds", type=commands.amount, default=5.0, help="of a turn")
    parser.add_argument("--out", type=Path, help="by default runs/benchmarks/growth.json, or growth_PART.json of parts")
    options = parser.parse_args()
    chosen = "" if tuple(options.only) == parts else "_" + "_".join(options.only)
    options.out = options.out or commands.FOLDER / f"growth{chosen}.json"
    commands.write(options.out, {})
    narrow = ["network.multipliers=[1,2,2]"]
    cases = {
        "data": {f"{n:,} images": (n, 28, 32, narrow) for n in SIZES},
        "batch": {f"batch {size}": (1000, 28, size, []) for size in BATCHES},
        "resolution": {f"{side} x {side}": (1000, side, 16, []) for side in SIDES},
        "width": {f"channels {width}": (1000, 28, 16, [*narrow, f"network.channels={width}"]) for width in WIDTHS},
    }
    found, faults = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for part in [part for part in cases if part in options.only]:
            rows = found[part] = trained(Path(folder), cases[part], options.turns, options.seconds)
            for name, row in rows.items():
                memory = row["peak_memory_bytes"] / 2**30
                print(f"{name:20}{row['images_per_second']:>10.1f} images/s{memory:>8.2f} GiB", flush=True)
            commands.write(options.out, {"rows": found})
    if "data" in found:
        rates = [row["images_per_second"] for row in found["data"].values()]
        if spread(rates) > TOLERANCE:
            faults.append(f"images a second differ by {spread(rates):.1%} over the sizes of the data")
    if "sampling" in options.only:
        settle()
        found["sampling"] = sampled(repeat=options.turns)
        for name, row in found["sampling"].items():
            print(f"{name:20}{row['milliseconds']:>10.3f} ms an evaluation of an image")
        if (wide := spread([row["milliseconds"] for row in found["sampling"].values()])) > TOLERANCE:
            faults.append(f"an evaluation's time differs by {wide:.1%}")
        found["memory"] = {n: peak_memory(n) for n in MANY}
        for n, size in found["memory"].items():
            print(f"{n:>6} images drawn  {size / 2**30:.3f} GiB at most")
        if max(found["memory"].values()) - min(found["memory"].values()) > MEMORY:
            faults.append("memory grows with the number of images drawn")
    commands.write(options.out, {"rows": found, "faults": faults})
    if faults:
        raise SystemExit("; ".join(faults))


if __name__ == "__main__":
    commands.run(main)
