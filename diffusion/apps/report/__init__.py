"""python -m diffusion report: all that is known of a run, on one page that needs nothing else."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diffusion.apps import pages
from diffusion.apps.cli import explain
from diffusion.apps.output import best_device, output_folder
from diffusion.apps.report import pictures, tables
from diffusion.apps.report.drawing import drawn
from diffusion.apps.report.recipe import data_of, name_of, recipe, trained
from diffusion.apps.report.results import Part
from diffusion.apps.report.sections import audit_of, evaluation_of, losses_of, read, reconstruction_of, utility_of
from diffusion.errors import UserError
from diffusion.files import replace_file
from diffusion.provenance import code, machine
from diffusion.runs import Run, datamodule_of
from diffusion.tasks.sample import check_positive

log = logging.getLogger("diffusion")

TASKS = ("evaluate", "audit", "utility", "reconstruct")


def main(config: DictConfig) -> None:
    """Write report.html into the run's folder, or into `out`. What a task has not made yet is named on the page."""
    check_positive(n=config.n, batch_size=config.batch_size)
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema)
    if lacking := run.under(config).model.lacks(run.spec):
        raise UserError(lacking)
    device = best_device(config.device)
    folder = output_folder(str(config.out), config.overwrite) if config.out else run.directory
    page = page_of(run, config, device)
    path = folder / "report.html"
    replace_file(path, lambda temporary: temporary.write_text(render(page), encoding="utf-8"))
    log.info("%s", path)


def render(page: dict[str, Any]) -> str:
    """The page as HTML; everything in it that is not of this package is escaped."""
    here = Path(__file__).parent
    return pages.render(here / "page.html", page | {"script": (here / "script.js").read_text()})


def page_of(run: Run, config: DictConfig, device: Any) -> dict[str, Any]:
    """Everything that the template names."""
    generates = run.model.makes_images
    compresses = run.model.compresses or run.config.data.codec_fingerprint is not None
    datamodule, reason = data(run, config)
    content, problem = weights(run)
    position = None if content is None else (content["global_step"], content["callbacks"]["Budget"])
    own = own_receipt(run.under(config), config, position)
    samples = None
    if generates and content is not None:
        try:
            samples = drawn(run.under(config), config, device, datamodule, reason)
        except Exception as error:
            problem = mistake(error)
            log.warning("no samples could be drawn: %s", problem)
    parts = {task: Part.of(run.directory, task, str(config.run)) for task in TASKS}
    evaluation, audit, utility = (
        read(parts[task], build, own["weights"])
        for task, build in (("evaluate", evaluation_of), ("audit", audit_of), ("utility", utility_of))
    )
    reconstruction = read(parts["reconstruct"], reconstruction_of, None)
    size = None if content is None else sum(value.numel() for value in content["ema"].values())
    said, finished = trained(run, position)
    badges = [tables.Badge("trained", said, "good" if finished else "open")]
    badges += [part["badge"] for part in (audit, evaluation) if part and part["badge"]]
    train = (
        f"python train.py experiment={run.config.experiment} run_id={run.config.run_id} runs_dir={run.config.runs_dir}"
    )
    command = f"python -m diffusion report run={shlex.quote(str(config.run))}"
    receipt = {"name": "this page", "command": command, "problem": None}
    receipt["text"] = pretty(own)
    source = datamodule.source if datamodule else name_of(run.config.dataset)
    names = {
        "samples": "Samples" if generates else compresses and "Reconstructions",
        "denoising": samples and "Denoising",
        "recipe": "Recipe",
        "training": "Training",
        "metrics": generates and "Metrics",
        "audit": generates and "Audit",
        "utility": generates and "Utility",
        "reconstruction": compresses and "Compression",
        "receipts": "Receipts",
    }
    wanted = [task for task in TASKS if (generates or task == "reconstruct") and (compresses or task != "reconstruct")]
    return {
        "title": f"{run.config.experiment} / {run.config.run_id}",
        "subtitle": f"{name_of(run.config.model)} on {source}",
        "badges": badges,
        "sections": [(key, name) for key, name in names.items() if name],
        "generates": generates,
        "compresses": compresses,
        "drawn": samples,
        "sampling_problem": (problem or "the run has no checkpoint yet") if generates else None,
        "reconstructed": None if generates or not compresses else newest_picture(run),
        "recipe": recipe(run, size, said, data_of(run, datamodule, reason)),
        "config_text": (run.directory / "config.yaml").read_text(),
        "train_command": train,
        "losses": losses_of(run),
        "parts": parts,
        "evaluation": evaluation,
        "audit": audit,
        "utility": utility,
        "reconstruction": reconstruction,
        "receipts": [
            receipt,
            {
                "name": "training",
                "command": train,
                "text": None,
                "problem": "With the settings of config.yaml, above, under Recipe.",
            },
            *(receipt_of(parts[task]) for task in wanted),
        ],
        "footer": f"Made by med-diffusion {own['code']['version']} on {own['machine']['date']}.",
    }


def data(run: Run, config: DictConfig) -> tuple[Any, str | None]:
    """The run's data, or None and why they cannot be had, or are of no use here."""
    try:
        datamodule = datamodule_of(config)
        spec = datamodule.spec
    except Exception as error:
        reason = mistake(error)
        log.warning("the real images are left out: %s", reason)
        return None, reason
    if (spec.shape, spec.classes) != (run.spec.shape, run.spec.classes):
        return None, f"{datamodule.source} has other shapes or classes than the run was trained on"
    if datamodule.fingerprint() != run.config.data.fingerprint:
        log.warning("%s is not what the run was trained on: the page shows other images", datamodule.source)
    return datamodule, None


def mistake(error: Exception) -> str:
    """One line for what the user can mend; an error of the program is raised again."""
    line = explain(error) or (str(error) if isinstance(error, OSError) else None)
    if line is None:
        raise error
    return line


def weights(run: Run) -> tuple[dict[str, Any] | None, str | None]:
    """The checkpoint's content; or None, and why there is none. Raises UserError for one that was asked for by name."""
    try:
        return run.load_checkpoint(), None
    except UserError as error:
        if run.checkpoint is not None:
            raise
        log.warning("%s", error)
        return None, str(error)


def newest_picture(run: Run) -> pictures.Picture | None:
    """What an autoencoder's training drew last."""
    drawn = sorted((run.directory / "samples").glob("step_*.png"))
    alt = "Validation images, what the autoencoder gives back of them, and the difference"
    return pictures.from_file(drawn[-1], alt) if drawn else None


def own_receipt(run: Run, config: DictConfig, position: tuple[int, dict[str, Any]] | None) -> dict[str, Any]:
    """How the samples on the page were drawn."""
    choices = {key: run.config.get(key) for key in ("sampler", "grid", "guidance")}
    return {
        "run": str(config.run),
        "checkpoint": config.checkpoint,
        "ema": run.average,
        "step": position and position[0],
        "weights": position and run.fingerprint(),
        "codec": run.config.data.codec_fingerprint,
        **{key: OmegaConf.to_container(node, resolve=True) if node else None for key, node in choices.items()},
        "n": config.n,
        "seed": config.seed,
        "code": code(),
        "machine": machine(),
    }


def receipt_of(part: Part) -> dict[str, Any]:
    text = None if part.found is None else pretty(part.found)
    return {"name": part.task, "command": part.command, "text": text, "problem": part.problem}


def pretty(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False)
