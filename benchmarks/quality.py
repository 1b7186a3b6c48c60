"""Quality after equal time on equal cores: our recipe beside those of the libraries, and the time that sampling takes.

    pip install -e ".[benchmarks]"
    python benchmarks/quality.py             # digits, two minutes of training each, half an hour on two cores
    python benchmarks/quality.py --experiment bloodmnist_pixel --minutes 10 --n 256 dataset=npz dataset.path=FILE.npz

Ours is `train.py experiment=...` and `python -m diffusion sample`, with its own defaults: it knows the classes, which
it draws in turn, and the libraries' examples do not. Each library trains a network of the size of ours, as
benchmarks/networks.py has it, by its example's recipe, for the same seconds from its first step on, and draws as many
images by its example's sampler. Their batches are of 16, as the examples of diffusers and denoising-diffusion-pytorch
have them; MONAI's, of 128, would leave it few steps in this time. `python -m diffusion evaluate` judges all of them,
without labels: distances to the test set, beside those of as many real training images, which are the floor. The words
behind the options go to train.py, and those of the data to evaluate. Status 1 where our Frechet distance is more than
half of a library's or four times the floor, or our sampling is not 50 times as fast as a DDPM of 1,000 steps whose
images are no nearer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hydra.core.hydra_config import HydraConfig  # noqa: E402

from benchmarks import commands  # noqa: E402
from benchmarks.networks import MATCHES  # noqa: E402
from benchmarks.peers import TOOLS, versions  # noqa: E402
from benchmarks.training_speed import PEERS, images_of, save  # noqa: E402
from diffusion.runs import datamodule_of  # noqa: E402
from tests.training import composed  # noqa: E402

SHARE, FLOORS, FASTER = 0.5, 4, 50


def command(*words: str, **environment: str) -> str:
    run = partial(subprocess.run, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return run([sys.executable, *words], env={**os.environ, **environment}).stdout


def judged(folder: Path, options: argparse.Namespace, samples: Path) -> dict[str, dict[str, float]]:
    """What evaluate says of fid and kid: the value, its interval, and the floor."""
    dataset = [word for word in options.words if word.startswith("dataset")]
    command("-m", "diffusion", "evaluate", f"n={options.n}", f"out={folder}", f"samples={samples}", *dataset)
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    if lacking := {"fid", "kid"} - metrics.keys():
        raise SystemExit(f"evaluate leaves out {' and '.join(sorted(lacking))} for so few images: give a larger --n")
    found = {name: metrics[name]["test"] for name in ("fid", "kid")}
    return {
        name: {"value": figure["value"], "interval": [figure["low"], figure["high"]], "floor": figure["floor"]["value"]}
        for name, figure in found.items()
    }


def ours(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    experiment = f"experiment={options.experiment}"
    minutes, seconds = divmod(round(60 * options.minutes), 60)
    limit = f"trainer.max_time=00:00:{minutes:02}:{seconds:02}"
    command("train.py", experiment, f"runs_dir={folder}", "run_id=ours", limit, *options.words)
    run = folder / options.experiment / "ours"
    command("-m", "diffusion", "sample", f"run={run}", f"n={options.n}")
    sampled = json.loads((run / "sample" / "metrics.json").read_text())
    with open(run / "metrics.csv") as file:
        steps = int(file.readlines()[-1].split(",")[0])
    # Their images have no labels, which the estimates would make use of.
    samples = folder / "ours.npz"
    np.savez(samples, images=np.load(run / "sample" / "samples.npz")["images"])
    return {
        "steps": steps,
        "sampling_seconds": sampled["seconds"],
        "evaluations": sampled["evaluations_per_image"],
        **judged(folder / "judged-ours", options, samples),
    }


def theirs(options: argparse.Namespace, folder: Path, tool: str, data: Path) -> dict[str, Any]:
    samples, seconds = folder / f"{tool}.npz", 60 * options.minutes
    words = [tool, f"--data={data}", f"--match={options.match}", f"--batch-size={options.batch_size}"]
    words += [f"--seconds={seconds}", f"--n={options.n}"]
    with tempfile.TemporaryDirectory() as own:  # theirs stays there: images as files, results
        facts = json.loads(command(PEERS, *words, f"--samples={samples}", TMPDIR=own).splitlines()[-1])
    evaluations = 250 if tool == "denoising_diffusion_pytorch" else 1000
    return {**facts, "evaluations": evaluations, **judged(folder / f"judged-{tool}", options, samples)}


def row_text(name: str, row: dict[str, Any], mine: dict[str, Any]) -> str:
    fid, kid = row["fid"], row["kid"]
    interval = "{:.2f} to {:.2f}".format(*fid["interval"])
    floors = f"{fid['value'] / fid['floor']:.1f}" if fid["floor"] > 0 else "-"
    return (
        f"{name:30}{row['steps']:>7}{fid['value']:>10.3f}{interval:>18}{floors:>9}{kid['value']:>10.4f}"
        f"{row['evaluations']:>7}{row['sampling_seconds']:>9.1f} s"
        f"{row['sampling_seconds'] / mine['sampling_seconds']:>7.0f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", default=["dataset=digits"])
    parser.add_argument("--experiment", default="digits_pixel")
    parser.add_argument("--minutes", type=commands.amount, default=2)
    parser.add_argument("--n", type=commands.count, default=500)
    parser.add_argument("--batch-size", type=commands.count, default=16, help="of the libraries")
    parser.add_argument(
        "--tools",
        nargs="+",
        choices=[tool for tool in TOOLS if tool != "ours"],
        default=["diffusers", "monai", "denoising_diffusion_pytorch"],
    )
    parser.add_argument("--folder", type=Path, help="keep runs and samples here; by default only the figures are kept")
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "quality.json")
    options = parser.parse_intermixed_args()
    kept = tempfile.TemporaryDirectory()
    folder = (options.folder or Path(kept.name)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = composed([f"experiment={options.experiment}", *options.words])
    options.match = HydraConfig.get().runtime.choices.network
    if options.match not in MATCHES:
        parser.error(f"network={options.match}: benchmarks/networks.py has {', '.join(MATCHES)}")
    facts = {"versions": versions(options.tools, options.batch_size), "minutes": options.minutes, "n": options.n}
    commands.write(options.out, facts)
    save(folder / "data.npz", images_of(datamodule_of(config)))
    print(f"{'':30}{'steps':>7}{'FID':>10}{'95%':>18}{'/ floor':>9}{'KID':>10}{'calls':>7}{'sampling':>11}{'ours':>8}")
    rows: dict[str, dict[str, Any]] = {}
    for tool in ["ours", *options.tools]:
        rows[tool] = ours(options, folder) if tool == "ours" else theirs(options, folder, tool, folder / "data.npz")
        print(row_text(tool, rows[tool], rows["ours"]), flush=True)
        commands.write(options.out, {**facts, "words": options.words, "rows": rows})
    if found := faults(rows):
        raise SystemExit("; ".join(found))


def faults(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What falls short of what this benchmark asks, one line each."""
    mine, found = rows["ours"], []
    distance, floor = mine["fid"]["value"], mine["fid"]["floor"]
    if floor <= 0:
        found.append("so few images have no floor: give a larger --n")
    elif distance > FLOORS * floor:
        found.append(f"our distance is {distance / floor:.1f} times the floor")
    for tool, row in rows.items():
        if tool == "ours":
            continue
        if distance > SHARE * row["fid"]["value"]:
            found.append(f"our distance is {distance / row['fid']['value']:.2f} of that of {tool}")
        faster = row["sampling_seconds"] / mine["sampling_seconds"]
        if row["evaluations"] == 1000 and distance <= row["fid"]["value"] and faster < FASTER:
            found.append(f"our sampling is {faster:.0f} times as fast as that of {tool}")
    return found


if __name__ == "__main__":
    commands.run(main)
