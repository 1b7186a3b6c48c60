"""python -m diffusion dashboard: a view of a W&B project, with the panels that these runs fill.

Runs are grouped by their sweep. All curves are drawn over the optimizer step.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from diffusion.apps.output import output_folder
from diffusion.callbacks.wandb_page import STEP, asking
from diffusion.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

log = logging.getLogger("diffusion")

BEST = "val/best_loss"
CURVES = {
    "train": {"loss": ["train/loss"], "learning rate": ["train/learning_rate"]},
    "val": {"loss": ["val/loss"], "PSNR in dB": ["val/psnr"], "Dice": ["val/dice"]},
    "eval": {
        "Fréchet distance (validation split)": ["eval/fid"],
        "kernel distance (validation split)": ["eval/kid"],
        "precision, recall": ["eval/precision", "eval/recall"],
        "density, coverage": ["eval/density", "eval/coverage"],
        "share of copies": ["eval/copies"],
    },
    "system": {
        "images a second": ["train/images_per_second"],
        "seconds of training": ["system/elapsed_seconds"],
    },
}
"""Section -> title of a panel -> its curves, over the optimizer step."""
LOGARITHMIC = ("train/loss", "val/loss")
PICTURES = ("samples", "denoising", "reconstructions", "segmentations", "sample/grid", "sample/trajectory")
TESTED = {
    "Fréchet distance (test split)": "eval/evaluate/fid/test",
    "kernel distance (test split)": "eval/evaluate/kid/test",
    "share of copies (audit)": "eval/audit/copies",
}
"""What the tasks have found, of each run one bar: `publish` brings it."""
MACHINE = {
    "GPU in percent": [f"system/gpu.{i}.gpu" for i in range(8)],
    "GPU memory in percent": [f"system/gpu.{i}.memoryAllocated" for i in range(8)],
    "CPU in percent": ["system/cpu"],
    "memory of the process in MB": ["system/proc.memory.rssMB"],
}
"""What W&B measures by itself, over time."""
VARIED = ("seed", "optimizer.lr", "scheduler._target_", "parameterization._target_", "network.channels")
"""What sweeps often vary, as the axes of the parallel coordinates."""


def main(config: DictConfig) -> None:
    """Save the view on W&B, or its JSON into the folder `out`.

    Raises UserError where the library is not installed, there is no entity, or W&B refuses.
    """
    with asking("log in first, or give out=DIR"):
        if config.out is None:
            workspace(config.project, config.entity or default_entity(), config.name).save()
            return
        spec = workspace(config.project, config.entity or "", config.name)._to_model().spec
    path = output_folder(config.out, config.overwrite) / "dashboard.json"
    path.write_text(json.dumps(spec.model_dump(by_alias=True, exclude_none=True), indent=2) + "\n")
    log.info("%s", path)


def default_entity() -> str:
    """Whose projects are meant where no team is named. Raises UserError where the account has none."""
    import wandb

    entity = wandb.Api().default_entity
    if entity is None:
        raise UserError("your W&B account has no default team: give entity=TEAM")
    return entity


def workspace(project: str, entity: str, name: str) -> Workspace:
    """The view. Raises UserError where wandb-workspaces is not installed."""
    try:
        from wandb_workspaces.workspaces import Metric, RunsetSettings, Workspace, WorkspaceSettings
    except ImportError as error:
        raise UserError('dashboard needs the library wandb-workspaces: pip install -e ".[dashboard]"') from error
    return Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections(),
        settings=WorkspaceSettings(x_axis=STEP, group_by_prefix="first", max_runs=50),
        runset_settings=RunsetSettings(
            groupby=[Metric("Group")],
            pinned_columns=[f"summary:{BEST}", f"summary:{STEP}", "run:state"],
        ),
    )


def sections() -> list[Section]:
    """What a page holds, from top to bottom, under the prefixes of what is logged."""
    from wandb_workspaces.reports import v2 as wr
    from wandb_workspaces.workspaces import Section

    def curve(title: str, names: list[str]) -> wr.LinePlot:
        return wr.LinePlot(title=title, x=STEP, y=names, log_y=names[0] in LOGARITHMIC or None, title_x="step")

    curves = {name: [curve(title, names) for title, names in panels.items()] for name, panels in CURVES.items()}
    trials = [wr.Config(key) for key in VARIED] + [wr.SummaryMetric(BEST)]
    axes = [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in trials]
    by_noise = [
        wr.LinePlot(title=f"validation {what} by log-SNR", x=STEP, metric_regex=f"{what}_by_noise/.*", title_x="step")
        for what in ("loss", "accuracy")
    ]
    pictures = [wr.MediaBrowser(title=name, media_keys=[f"samples/{name}"], num_columns=2) for name in PICTURES]
    bars = [wr.BarPlot(title=title, metrics=[name]) for title, name in TESTED.items()]
    report = wr.MediaBrowser(title="report", media_keys=["eval/report"], num_columns=1)
    machine = [wr.LinePlot(title=title, x="RelativeTime(Wall)", y=names) for title, names in MACHINE.items()]
    panels = {
        "train": curves["train"],
        "val": [*curves["val"], wr.ParallelCoordinatesPlot(title="trials", columns=axes)],
        "loss_by_noise": by_noise,
        "samples": pictures,
        "eval": [*curves["eval"], *bars, report],
        "system": [*curves["system"], *machine],
    }
    return [Section(name=name, panels=found, is_open=name != "system") for name, found in panels.items()]
