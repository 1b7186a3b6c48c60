"""Whether steered models obey: the mask that a segmenter finds in a sample against the mask that was asked for.

    python benchmarks/steering.py dataset.path=DIR

The words describe a data set of images with masks (dataset=masks). Four runs are trained: a segmenter, the judge; a
base model that is told nothing; a ControlNet on it; and, for as long as these two together, one that is told the masks
by concatenation. Both then make images for the masks of test images. Beside the Dice with the mask asked for stands
that with another one's, which a model that ignores its control gets, and that of the real images, which no sample can
be asked to exceed. Runs are kept in --folder, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands  # noqa: E402
from benchmarks.digits import command  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="+", help="of the data set, as for train.py")
    parser.add_argument("--minutes", type=commands.amount, default=8, help="for the base; the ControlNet gets as much")
    parser.add_argument("--size", type=commands.count, default=32, help="of the images")
    parser.add_argument("--n", type=commands.count, default=120, help="samples of each model")
    parser.add_argument("--folder", type=commands.folder, default=ROOT / "runs" / "steering")
    arguments = parser.parse_args()
    out = arguments.folder / "steering.json"
    facts = {"words": arguments.words, "minutes": arguments.minutes, "size": arguments.size, "n": arguments.n}
    commands.write(out, facts)
    data = ["dataset=masks", f"dataset.size={arguments.size}", *arguments.words]
    image = ["experiment=leukemia_pixel", "grid.steps=12"]

    def trained(name: str, minutes: float, *words: str) -> Path:
        limit = f"trainer.max_time={timedelta_text(minutes)}"
        command("train.py", *words, *data, limit, f"run_id={name}", f"runs_dir={arguments.folder}")
        return next(arguments.folder.glob(f"*/{name}"))

    judge = trained("judge", arguments.minutes / 2, "experiment=wbc_segmenter")
    base = trained("base", arguments.minutes, *image)
    models = {
        "ControlNet": trained(
            "controlnet", arguments.minutes, *image, "control=mask", "network=controlnet", f"network.base={base}"
        ),
        "concatenation": trained("concatenated", 2 * arguments.minutes, *image, "control=mask"),
    }
    command("-m", "diffusion", "segment", f"run={judge}", "overwrite=true")
    table = {"real images": {"asked": json.loads((judge / "segment" / "metrics.json").read_text())["mean_dice"]}}
    for name, run in models.items():
        words = [f"run={run}", f"segmenter={judge}", f"n={arguments.n}", "overwrite=true"]
        command("-m", "diffusion", "sample", *words)
        found = json.loads((run / "sample" / "metrics.json").read_text())["adherence"]
        table[name] = {key: values["mean_dice"] for key, values in found.items()}
        commands.write(out, {**facts, "dice": table})
    print("\n| images of | Dice with the mask asked for | with another one's |\n|---|---|---|")
    for name, row in table.items():
        cells = [text(row[key]) if key in row else "" for key in ("asked", "shuffled")]
        print(f"| {name} | {' | '.join(cells)} |")


def timedelta_text(minutes: float) -> str:
    """As trainer.max_time has it, DD:HH:MM:SS."""
    return f"00:{timedelta(seconds=round(60 * minutes))!s:0>8}"


def text(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


if __name__ == "__main__":
    commands.run(main)
