"""What variants of 1 to 16 examples of a class are worth to a classifier, for classes that the model never saw.

    python benchmarks/few_shot.py                    # digits, half an hour on two cores
    python benchmarks/few_shot.py --wbc FILE.npz     # white blood cells in MedMNIST's layout, over an hour

A base model is trained on some classes: of the ten digits all but 3, 5 and 8, which are easily taken for each other; of
the four white cells eosinophils and neutrophils. The others are the task: a classifier is to tell them apart. For each
number k of examples a class, and each draw of these examples:

1. `train.py finetune.from=BASE finetune.unfreeze=token` learns a token of each class from its k examples;
2. `augment` makes variants of the examples, told their tokens;
3. `utility` trains one classifier for each arm, with weights and batches of its own draw, and asks it about the whole
   test split of the task's classes.

All that is known of the task's classes are these k examples. Arms: `real` examples alone; `augmented`, the classical
shifts, turns, scales and brightness; `synthetic` and `both`, plain samples of the tokens alone, and half and half with
real ones; `variants`; `variants_augmented`. Figures are means over draws and test images with 95% intervals over both,
beside their paired differences from real examples alone and from the classical augmentation.

It writes few_shot_NAME.json and few_shot_NAME.md into the folder of the runs, after every k.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands  # noqa: E402
from diffusion.apps import tasks  # noqa: E402
from diffusion.apps.config import training_config  # noqa: E402
from diffusion.apps.train import train  # noqa: E402
from diffusion.metrics.paired import crossed_interval, paired_difference  # noqa: E402
from diffusion.random import generator  # noqa: E402

ARMS = ("real", "augmented", "synthetic", "both", "variants", "variants_augmented")
SPLITS = ("train", "val", "test")
SAMPLES = 64
"""Plain samples of each class."""
Splits = dict[str, tuple[Tensor, Tensor]]
"""Images uint8 (N, C, H, W) and labels int64 (N,) of each split."""


class Problem(NamedTuple):
    """Data, the names of the classes, those that the base never sees, and how base and tokens are trained."""

    name: str
    splits: Splits
    names: tuple[str, ...]
    new: tuple[str, ...]
    base: tuple[str, ...]
    token: tuple[str, ...]
    classifier_steps: int

    def of(self, names: tuple[str, ...]) -> Splits:
        """The images of these classes alone; labels are those of the whole."""
        wanted = torch.tensor([self.names.index(name) for name in names])
        return {
            split: (images[kept], labels[kept])
            for split, (images, labels) in self.splits.items()
            for kept in [torch.isin(labels, wanted)]
        }

    @property
    def size(self) -> int:
        return self.splits["train"][0].shape[-1]


def digits() -> Problem:
    from datamodules.digits import Digits

    data = Digits()
    splits = {name: (data.split(name).images, data.split(name).labels) for name in SPLITS}
    base = ("experiment=digits_pixel", "trainer.max_steps=1600", "trainer.max_time=null")
    token = ("experiment=digits_pixel", "trainer.max_steps=300", "trainer.max_time=null")
    return Problem("digits", splits, Digits.class_names, ("3", "5", "8"), base, token, 300)


def cells(path: Path) -> Problem:
    with np.load(path) as file:
        splits = {
            name: (
                torch.from_numpy(file[f"{name}_images"]).movedim(-1, 1).contiguous(),
                torch.from_numpy(file[f"{name}_labels"].reshape(-1).astype(np.int64)),
            )
            for name in SPLITS
        }
    names, new = ("eosinophil", "lymphocyte", "monocyte", "neutrophil"), ("lymphocyte", "monocyte")
    recipe = ("experiment=bloodmnist_pixel", "network=tiny")
    base = (*recipe, "trainer.max_steps=null", "trainer.max_time=00:00:20:00")
    token = (recipe[0], "batch_size=16", "trainer.max_steps=300", "trainer.max_time=null")
    return Problem("cells", splits, names, new, base, token, 300)


def write(folder: Path, splits: Splits, names: tuple[str, ...]) -> None:
    """folder/SPLIT/CLASS/PLACE.png, unless it is there."""
    if folder.exists():
        return
    for split, (images, labels) in splits.items():
        for place, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            path = folder / split / names[label] / f"{place:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.movedim(0, -1).squeeze(-1).numpy()).save(path)


def examples(splits: Splits, k: int, draw: int) -> Splits:
    """k training images of each class, of which a smaller k has some; validation and test images as they are."""
    images, labels = splits["train"]
    chosen = []
    for label in labels.unique().tolist():
        places = (labels == label).nonzero().flatten()
        chosen.append(places[torch.randperm(len(places), generator=generator("few shot", draw, label))[:k]])
    rows = torch.cat(chosen)
    return {**splits, "train": (images[rows], labels[rows])}


def trained(runs: Path, run_id: str, data: Path, size: int, words: tuple[str, ...]) -> Path:
    """The run of this name, trained unless it is finished."""
    config = training_config(
        [
            *words,
            f"runs_dir={runs}",
            f"run_id={run_id}",
            "dataset=folder",
            f"dataset.path={data}",
            f"dataset.size={size}",
            f"dataset.cache={runs / '.data'}",
            "trainer.validate_every_n_steps=100000",
            "callbacks.post_hoc_ema.snapshots=0",
        ]
    )
    train(config)
    return runs / config.experiment / run_id


def answers(problem: Problem, base: Path, k: int, draw: int, runs: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Of each arm, whether its classifier is right about the test images, float64 (N,)."""
    data = runs / "data" / f"{problem.name}-{k}-{draw}"
    write(data, examples(problem.of(problem.new), k, draw), problem.names)
    words = (*problem.token, f"finetune.from={base}", "finetune.unfreeze=token", f"seed={draw}", *options.token)
    run = trained(runs, f"few-{problem.name}-{k}-{draw}", data, problem.size, words)
    out = {task: run / task for task in ("augment", "utility")}
    common = [f"run={run}", f"seed={draw}", "overwrite=true"]
    tasks.main(["augment", *common, "classifier=false", f"out={out['augment']}", *options.augment])
    n = SAMPLES * len(problem.new)
    steps = options.classifier_steps or problem.classifier_steps
    words = [f"variants={out['augment']}", f"n={n}", "budgets=[all]", "seeds=1", f"steps={steps}"]
    tasks.main(["utility", *common, *words, f"out={out['utility']}", *options.utility])
    with (out["utility"] / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {arm: np.array([float(row[f"all {arm}"]) for row in rows]) for arm in ARMS}


def figures(right: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Accuracy of each arm over draws and test images, and its differences from two of them."""
    values = {arm: np.stack(each) for arm, each in right.items()}
    found: dict[str, Any] = {}
    for arm in ARMS:
        found[arm] = {"accuracy": crossed_interval(values[arm], bounds=(0.0, 1.0))._asdict()}
        found[arm]["draws"] = [float(draw.mean()) for draw in values[arm]]
        for reference in ("real", "augmented"):
            if arm not in ("real", reference):
                difference, p = paired_difference(values[arm], values[reference], bounds=(-1.0, 1.0))
                found[arm][f"minus_{reference}"] = difference._asdict() | {"p": p}
    return found


def table(rows: dict[str, Any]) -> str:
    """Markdown: a row for each arm, a column for each number of examples."""

    def cell(found: dict[str, Any]) -> str:
        a = found["accuracy"]
        text = f"{a['value']:.3f} ({a['low']:.3f} to {a['high']:.3f})"
        if "minus_augmented" in found:
            d = found["minus_augmented"]
            text += f", {d['value']:+.3f} (p {d['p']:.3f})" if d["p"] >= 0.001 else f", {d['value']:+.3f} (p < 0.001)"
        return text

    lines = ["| examples a class | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for arm in ARMS:
        lines.append(f"| {arm.replace('_', ' ')} | " + " | ".join(cell(found[arm]) for found in rows.values()) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wbc", type=Path, default=None, help="white cells, an npz file, in place of digits")
    parser.add_argument("--k", type=commands.count, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=commands.folder, default=commands.FOLDER)
    parser.add_argument("--classifier-steps", type=commands.count, default=None)
    parser.add_argument("--base", nargs="*", default=[], help="further overrides of the base's training")
    parser.add_argument("--token", nargs="*", default=[], help="of the tokens' training")
    parser.add_argument("--augment", nargs="*", default=["variants=8"], help="of the augment task")
    parser.add_argument("--utility", nargs="*", default=[], help="of the utility task")
    options = parser.parse_args()

    start, runs = time.perf_counter(), options.runs_dir
    problem = digits() if options.wbc is None else cells(options.wbc)
    known = tuple(name for name in problem.names if name not in problem.new)
    write(runs / "data" / f"{problem.name}-base", problem.of(known), problem.names)
    base = trained(
        runs,
        f"few-{problem.name}-base",
        runs / "data" / f"{problem.name}-base",
        problem.size,
        (*problem.base, *options.base),
    )
    rows: dict[str, Any] = {}
    path = runs / f"few_shot_{problem.name}.json"
    for k in options.k:
        each = [answers(problem, base, k, draw, runs, options) for draw in options.draws]
        rows[str(k)] = figures({arm: [found[arm] for found in each] for arm in ARMS})
        about = {"classes": problem.new, "base": known, "draws": options.draws, "test_images": len(each[0]["real"])}
        overrides = {key: getattr(options, key) for key in ("base", "token", "augment", "utility", "classifier_steps")}
        seconds = round(time.perf_counter() - start, 1)
        result = {**about, "overrides": overrides, "seconds": seconds, "budgets": rows}
        commands.write(path, result)
        path.with_suffix(".md").write_text(table(rows))
        print(table(rows), flush=True)


if __name__ == "__main__":
    commands.run(main)
