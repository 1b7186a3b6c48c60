"""What Lightning, Hydra's config, logging and the averaged weights cost, over a bare loop.

    python benchmarks/overhead.py

The small U-Net is trained by the whole framework at batch 64 on 28 x 28 RGB (experiment=tissue_pixel). After each of
its steps, a bare loop in the same process makes one step with a copy of the network, the same batch size, loss,
gradient clipping and optimizer. The ratio of the medians is free of the machine's drift. Validation, previews and
checkpoints are left out of both: they are work, not overhead. The same is then done on digits. At last, what the
machinery of several processes costs where there is one: in turns, accelerator=cpu and cpu_ddp with one device, each
over the bare loop.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402

from benchmarks import commands  # noqa: E402
from diffusion.apps import train as app  # noqa: E402
from diffusion.denoiser import scale  # noqa: E402
from diffusion.devices import to_device  # noqa: E402
from tests.training import composed  # noqa: E402


class Interleaved(pl.Callback):
    """Makes a bare step after each step of the framework, and times both."""

    def __init__(self, warm_up: int):
        self.warm_up = warm_up
        self.framework: list[float] = []
        self.bare: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = copy.deepcopy(pl_module.denoiser)
        self.denoiser, self.objective = module, pl_module.objective
        self.optimizer = pl_module.optimizer(module.network.parameters())
        split = trainer.datamodule.split("train")
        self.images, self.labels = (each.to(pl_module.device) for each in (split.images, split.labels))
        self.on_gpu = pl_module.device.type == "cuda"
        self.left = self.now()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        start = self.now()
        self.step(len(batch["image"]))
        end = self.now()
        if trainer.global_step > self.warm_up:
            self.framework.append(start - self.left)
            self.bare.append(end - start)
        self.left = self.now()

    def now(self) -> float:
        """Seconds, when a GPU has done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, batch_size: int) -> None:
        denoiser, objective = self.denoiser, self.objective
        chosen = torch.randint(len(self.images), (batch_size,))
        x0 = self.images[chosen].float() / 127.5 - 1
        t = objective.time(torch.rand(batch_size, dtype=torch.float64), denoiser.scheduler)
        noise = torch.randn_like(x0)
        alpha, sigma, c = denoiser.coefficients(t)
        weight = objective.weighting(t, denoiser.scheduler, c.out, denoiser.parameterization.sd) * c.out**2
        x_t = scale(alpha, x0) * x0 + scale(sigma, x0) * noise
        target = scale((1 - c.skip * alpha) / c.out, x0) * x0 - scale(c.skip * sigma / c.out, x0) * noise
        answer = denoiser.network(
            scale(c.input, x0) * x_t, to_device(c.noise, x0.device, torch.float32), {"label": self.labels[chosen]}
        )
        loss = (scale(weight, x0) * (answer - target).square()).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.network.parameters(), 1.0)
        self.optimizer.step()


def measure(experiment: str, steps: int, warm_up: int, overrides: list[str]) -> dict[str, float]:
    interleaved = Interleaved(warm_up)
    callbacks_of = app.callbacks_of
    app.callbacks_of = lambda *args: [*callbacks_of(*args), interleaved]
    plan = ["trainer.max_time=null", f"trainer.max_steps={steps + warm_up}", "batch_size=64"]
    never = ["trainer.validate_every_n_steps=1000000", "checkpoint.every_n_steps=1000000", "callbacks.previews.n=4"]
    try:
        with tempfile.TemporaryDirectory() as runs_dir:
            app.train(composed([f"experiment={experiment}", f"runs_dir={runs_dir}", *plan, *never, *overrides]))
    finally:
        app.callbacks_of = callbacks_of
    framework, bare = (1000 * statistics.median(times) for times in (interleaved.framework, interleaved.bare))
    return {"framework_ms": framework, "bare_ms": bare, "overhead_percent": 100 * (framework / bare - 1)}


def machinery(experiment: str, steps: int, repeat: int, overrides: list[str]) -> dict[str, Any]:
    """What accelerator=cpu_ddp with one device adds to a step of accelerator=cpu, of `repeat` turns the median."""
    kinds = {"cpu": ["accelerator=cpu"], "cpu_ddp": ["accelerator=cpu_ddp", "accelerator.devices=1"]}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeat):
        for kind, words in kinds.items():
            row = measure(experiment, steps, 5, [*overrides, *words])
            found[kind].append(row["framework_ms"] / row["bare_ms"])
    plain, ddp = (statistics.median(ratios) for ratios in found.values())
    return {"over_bare": found, "overhead_percent": 100 * (ddp / plain - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=commands.count, default=200)
    parser.add_argument("--repeat", type=commands.count, default=5, help="turns of the last comparison")
    parser.add_argument("--machinery-only", action="store_true")
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "overhead.json")
    options = parser.parse_args()
    commands.write(options.out, {})
    logging.disable(logging.INFO)
    rows = {} if options.machinery_only else {
        "small U-Net, 28x28 RGB, batch 64": measure("tissue_pixel", options.steps, 20, ["network=small"]),
        "digits_pixel": measure("digits_pixel", 2 * options.steps, 20, []),
    }  # fmt: skip
    print(f"{'':34}{'framework':>12}{'bare loop':>12}{'overhead':>10}   (medians of a step)")
    for name, row in rows.items():
        print(f"{name:34}{row['framework_ms']:>9.1f} ms{row['bare_ms']:>9.1f} ms{row['overhead_percent']:>+9.1f}%")
    facts = {"steps": options.steps, "rows": rows}
    commands.write(options.out, facts)
    ddp = machinery("digits_pixel", options.steps // 2, options.repeat, [])
    print(f"digits_pixel, cpu_ddp with one device over cpu: {ddp['overhead_percent']:+.1f}%  {ddp['over_bare']}")
    commands.write(options.out, {**facts, "ddp": ddp})


if __name__ == "__main__":
    commands.run(main)
