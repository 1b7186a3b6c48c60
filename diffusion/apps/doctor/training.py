"""What the doctor says of training: whether the network fits, the time, the memory, and one batch learnt by heart."""

from __future__ import annotations

import math
from datetime import timedelta

from omegaconf import DictConfig

from diffusion.apps.doctor.findings import Report
from diffusion.apps.doctor.steps import FEW_STEPS, Trial
from diffusion.callbacks import Budget

FALLS = 2 / 3
"""Share of its first value that the loss of one batch should have fallen to."""


def about_training(found: Trial, cfg: DictConfig, images: int, report: Report) -> None:
    """images: of the training split."""
    shape = " x ".join(map(str, report.metrics["shape"]))
    report.rows["network"] = f"{found.network}, {found.parameters / 1e6:.2f} M parameters, takes {shape}"
    report.rows["speed"] = (
        f"{found.images_per_second:.0f} images/s on {found.device}: {found.step_seconds:.3g} s a step of "
        f"{found.batch_size} images (mean of {found.steps})"
    )
    budget = Budget.of(cfg.trainer)
    by_time = budget.max_seconds / found.step_seconds if budget.max_seconds else float("inf")
    steps = int(min(budget.max_steps or float("inf"), by_time))
    epochs = steps * cfg.batch_size / images
    limit = "max_steps" if steps == budget.max_steps else "max_time"
    report.rows["run"] = (
        f"{steps} steps, {epochs:.1f} epochs, in {timedelta(seconds=round(steps * found.step_seconds))}, "
        f"until trainer.{limit}; beside validation and previews"
    )
    memory = found.memory
    said = {"parameters": "parameters", "gradients": "gradients", "optimizer": "optimizer", "averaged": "average"}
    parts = ", ".join(f"{text} {size(memory[key])}" for key, text in said.items())
    whose = "the process" if found.device == "cpu" else "the device"
    report.rows["memory"] = (
        f"{size(memory['peak'])} of {whose} at most; {parts}, activations and the rest of a step {size(memory['rest'])}"
    )
    first, last = found.losses[0], found.losses[-1]
    learnt = f"{found.learnt} images: the loss goes from {first:.3g} to {last:.3g} in {len(found.losses)} steps"
    report.rows["one batch"] = learnt
    report.metrics |= {
        "network": {"name": found.network, "parameters": found.parameters},
        "speed": {
            "device": found.device,
            "batch_size": found.batch_size,
            "images_per_second": found.images_per_second,
            "step_seconds": found.step_seconds,
            "steps": found.steps,
        },
        "run": {"steps": steps, "epochs": epochs, "seconds": steps * found.step_seconds, "limit": f"trainer.{limit}"},
        "memory": memory,
        "one_batch": {"losses": [loss if math.isfinite(loss) else None for loss in found.losses]},
    }
    if epochs < 1:
        report.find(
            "run", "warning", f"the run sees only {100 * epochs:.0f}% of the training images: give it more time"
        )
    if not math.isfinite(last):
        report.find("one batch", "error", f"the loss of one batch becomes {last}: lower optimizer.lr")
    elif last > FALLS * first:
        if len(found.losses) < FEW_STEPS:
            report.find("one batch", "note", f"{learnt}: too few to tell; seconds= gives more")
        else:
            report.find("one batch", "warning", f"{learnt}: it should learn them by heart; look at optimizer.lr")


def size(count: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
