"""Seconds from `python train.py` to the first training step, and of `python train.py --help`.

    python benchmarks/startup.py

The first step is over when its row is in metrics.csv; the row is looked for every 10 ms. Medians over a few starts,
after one that warms the disk's cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands  # noqa: E402


def first_step(runs_dir: str, run_id: str, overrides: list[str]) -> float:
    start = time.perf_counter()
    words = [f"runs_dir={runs_dir}", f"run_id={run_id}", "trainer.log_every_n_steps=1", *overrides]
    process = subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while not list(Path(runs_dir).glob(f"*/{run_id}/metrics.csv")):
            if process.poll() is not None:
                raise SystemExit("train.py ended before its first step")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


def help_page() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=commands.count, default=5)
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "startup.json")
    options = parser.parse_args()
    commands.write(options.out, {})
    rows = {}
    with tempfile.TemporaryDirectory() as runs_dir:
        measures = {
            "first step of tissue_pixel": lambda i: first_step(runs_dir, f"tissue-{i}", []),
            "first step of digits_pixel": lambda i: first_step(runs_dir, f"digits-{i}", ["experiment=digits_pixel"]),
            "--help": lambda i: help_page(),
        }
        for name, measure in measures.items():
            times = [measure(i) for i in range(options.starts + 1)][1:]
            rows[name] = {"median": statistics.median(times), "min": min(times), "max": max(times)}
            print(f"{name:28}{rows[name]['median']:6.2f} s  ({rows[name]['min']:.2f} to {rows[name]['max']:.2f})")
            commands.write(options.out, {"rows": rows})


if __name__ == "__main__":
    commands.run(main)
