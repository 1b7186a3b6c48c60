"""Bits per dimension of digits: over training, and with fixed and learned covariance in few steps.

    python benchmarks/likelihood.py                 # three seeds, about fifteen minutes on two CPU cores
    python benchmarks/likelihood.py --seeds 0 --steps 100 200

Each seed trains `experiment=digits_pixel` with objective=edm_hybrid in stages, and after each stage measures, on
256 test images, the bound of 50 steps with the learned variance and with the two fixed ones, and the likelihood along
the flow.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands  # noqa: E402
from benchmarks.digits import command  # noqa: E402

RECIPE = ["experiment=digits_pixel", "objective=edm_hybrid", "objective.times.mean=-0.8", "trainer.max_time=null"]
VARIANCES = {"learned": "null", "small": "0", "large": "1"}


def measure(run: Path, n: str, *words: str) -> dict[str, dict[str, float]]:
    """What `likelihood` writes of the run."""
    out = run / "measured"
    command(
        "-m",
        "diffusion",
        "likelihood",
        f"run={run}",
        f"n={n}",
        f"out={out}",
        "overwrite=true",
        "batch_size=256",
        *words,
    )
    return json.loads((out / "metrics.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    stages = [100, 200, 400, 800, 1600]
    parser.add_argument("--steps", type=commands.count, nargs="+", default=stages, help="stages of training")
    parser.add_argument("--n", default="256", help="test images; null for all")
    parser.add_argument("--runs-dir", type=commands.folder, default=commands.FOLDER)
    options = parser.parse_args()

    out, rows = options.runs_dir / "likelihood.json", []
    facts = {"recipe": RECIPE, "grid": "log_snr_fine, 50 steps"}
    commands.write(out, facts)
    for seed in options.seeds:
        run_id = f"likelihood-{datetime.now():%Y%m%d-%H%M%S}-{seed}"
        run = options.runs_dir / "digits_pixel" / run_id
        for steps in options.steps:
            where = [f"seed={seed}", f"run_id={run_id}", f"runs_dir={options.runs_dir}"]
            command("train.py", *RECIPE, *where, f"trainer.max_steps={steps}")
            row = {"seed": seed, "step": steps}
            for name, variance in VARIANCES.items():
                found = measure(run, options.n, "grid.steps=50", f"variance={variance}", "flow=false")
                row[name] = found["bound"]
            row["flow"] = measure(run, options.n, "grid.steps=2")["flow"]
            rows.append(row)
            figures = "  ".join(f"{name} {row[name]['mean']:.3f}" for name in (*VARIANCES, "flow"))
            print(f"seed {seed}  step {steps}  {figures}", flush=True)
            commands.write(out, {**facts, "rows": rows})


if __name__ == "__main__":
    commands.run(main)
