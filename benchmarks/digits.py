"""Quality, speed and memorisation of `experiment=digits_pixel` after two minutes of training, over several seeds.

    python benchmarks/digits.py                 # three seeds, about eight minutes on two CPU cores
    python benchmarks/digits.py --seeds 0 --set network=small

Each seed is trained by train.py and sampled by `python -m diffusion sample` (1,000 images, the classes in turn). The
judge is a multi-layer perceptron (256-64) on the pixels of the real training half.

- accuracy: share of the samples that the judge reads as the class that was asked for
- distance ratio: Frechet distance between samples and real test half in the 64 features of the judge's last hidden
  layer, over that between the real training and test halves
- novelty: median distance in pixels from a sample to its nearest training digit, over that to its nearest test digit
  (the halves are of equal size); a copy of the training set scores near 0
- seconds: time to sample all 1,000; evaluations: calls of the network for each sample, guidance counted
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands  # noqa: E402

TARGETS = {
    "accuracy": (">=", 0.99),
    "distance_ratio": ("<=", 1.5),
    "novelty": (">=", 0.9),
    "seconds": ("<=", 5.0),
    "evaluations": ("<=", 20),
}


class Judge:
    """The classifier, its features, and the real halves that it measures against. Images: uint8 (N, 1, 8, 8)."""

    def __init__(self) -> None:
        import torch
        from sklearn.neighbors import NearestNeighbors
        from sklearn.neural_network import MLPClassifier

        from datamodules.digits import Digits

        data = Digits()
        train, val, test = (data.split(name) for name in ("train", "val", "test"))
        half, labels = torch.cat([train.images, val.images]), torch.cat([train.labels, val.labels])
        self.classifier = MLPClassifier((256, 64), random_state=0, max_iter=500).fit(pixels(half), labels)
        self.real_accuracy = float(self.classifier.score(pixels(test.images), test.labels))
        self.test = self.features(pixels(test.images))
        self.floor = frechet_distance(self.features(pixels(half)), self.test)
        self.nearest = {
            name: NearestNeighbors(n_neighbors=1).fit(pixels(images))
            for name, images in {"train": half, "test": test.images}.items()
        }

    def features(self, flat: np.ndarray) -> np.ndarray:
        """Activations of the last hidden layer, (N, 64)."""
        for weights, bias in list(zip(self.classifier.coefs_, self.classifier.intercepts_, strict=True))[:-1]:
            flat = np.maximum(flat @ weights + bias, 0)
        return flat

    def measure(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        flat = pixels(images)
        distances = {name: np.median(index.kneighbors(flat)[0]) for name, index in self.nearest.items()}
        return {
            "accuracy": float((self.classifier.predict(flat) == labels).mean()),
            "distance_ratio": frechet_distance(self.features(flat), self.test) / self.floor,
            "novelty": float(distances["train"] / distances["test"]),
        }


def pixels(images: np.ndarray) -> np.ndarray:
    """uint8 images as flat vectors in [-1, 1], the range of all images in the project."""
    return np.asarray(images, dtype=np.float64).reshape(len(images), -1) / 127.5 - 1


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features (N, d)."""
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    return float(mean + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots)


def command(*words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=commands.count, default=1000)
    parser.add_argument("--runs-dir", type=commands.folder, default=commands.FOLDER)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; by default RUNS_DIR/digits.json")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides of train.py")
    parser.add_argument("--sample", nargs="*", default=[], help="further overrides of the sample task")
    options = parser.parse_args()

    out = options.out or options.runs_dir / "digits.json"
    facts = {"overrides": options.set, "sampling": options.sample}
    commands.write(out, facts)
    judge = Judge()
    print(f"the judge reads {judge.real_accuracy:.3f} of the real test half; real-to-real distance {judge.floor:.3f}")
    rows = []
    for seed in options.seeds:
        run_id = f"{datetime.now():%Y%m%d-%H%M%S}-{seed}"  # a run of its own: a finished one would not train again
        run = options.runs_dir / "digits_pixel" / run_id
        train = ["train.py", "experiment=digits_pixel", f"seed={seed}", f"run_id={run_id}"]
        command(*train, f"runs_dir={options.runs_dir}", *options.set)
        task = ["-m", "diffusion", "sample", f"run={run}", f"n={options.n}", "overwrite=true"]
        command(*task, *options.sample)
        arrays = np.load(run / "sample" / "samples.npz")
        sampled = json.loads((run / "sample" / "metrics.json").read_text())
        figures = judge.measure(arrays["images"].transpose(0, 3, 1, 2), arrays["labels"])
        figures |= {"seconds": sampled["seconds"], "evaluations": sampled["evaluations_per_image"]}
        rows.append({"seed": seed, **figures})
        print(row_text(rows[-1]), flush=True)
        commands.write(out, {**facts, "seeds": rows})
    summary = {
        name: {
            "mean": float(np.mean([row[name] for row in rows])),
            "min": min(row[name] for row in rows),
            "max": max(row[name] for row in rows),
            "target": " ".join(map(str, TARGETS[name])),
        }
        for name in TARGETS
    }
    for name, values in summary.items():
        print(
            f"{name:>15}  {values['mean']:.3f}  ({values['min']:.3f} to {values['max']:.3f})  target {values['target']}"
        )
    commands.write(out, {**facts, "seeds": rows, "summary": summary})


def row_text(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" if name != "seed" else f"seed {value}" for name, value in row.items())


if __name__ == "__main__":
    commands.run(main)
