"""The logger that shows a run on Weights & Biases: its curves, its pictures, and at the end its files."""

from __future__ import annotations

import logging
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from diffusion.callbacks.metrics_csv import read_rows
from diffusion.errors import Stopped, UserError
from diffusion.files import replace_file

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("diffusion")

STEP = "trainer/global_step"
"""The optimizer step, against which everything is plotted."""
MODES = ("online", "offline", "disabled")

PATIENCE = 60.0
"""Seconds that the end of a page may take: a job whose time is up must still get back into its queue."""
HELD = ".wandb_step"
"""The file in the run's directory that says up to which step its page has everything."""

FILES = {
    "config": ("config.yaml", "splits.csv"),
    "metrics": ("metrics.csv", "train.log", "figures/*.png"),
    "trajectories": ("samples/denoising_*.png", "*/trajectory.gif"),
    "grids": ("*/*.png", "tune/*/*.png"),
    "receipts": ("*/metrics.json", "*/cases.csv", "*/*/metrics.json", "*/*/cases.csv"),
    "report": ("report.html",),
    "checkpoints": ("checkpoints/last.ckpt", "checkpoints/best*.ckpt"),
}
"""The artifacts of a run, and what of its directory each takes; a file belongs to the first that names it."""


class WandbPage(Logger):
    """The page of one run, under the id that the run has kept since it began: a run that goes on appends to it.

    A logger, and a context that ends the page: as finished, as preempted after a signal, or as failed. Nothing is asked
    of W&B before something is logged, or in another process than the first.

    W&B drops what is logged for a lower step than its own. Its own therefore counts the rows, and the optimizer step is
    a column, so that no row is lost where a killed run repeats steps: those rows are there twice, with the same values.

    mode: online, offline or disabled; None leaves it to WANDB_MODE. group: of runs that belong together.
    checkpoints: whether they are uploaded too. Raises UserError for what W&B refuses.
    """

    def __init__(
        self,
        project: str,
        entity: str | None = None,
        mode: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        checkpoints: bool = False,
    ):
        super().__init__()
        if mode is not None and mode not in MODES:
            raise UserError(f"logger.mode={mode}: give {', '.join(MODES)}, or null")
        with asking("change logger.project, entity, group or tags"):
            import wandb

            wandb.Settings(project=project, entity=entity, run_group=group, run_tags=tuple(tags))
        self.project, self.entity, self.mode, self.tags = project, entity, mode, list(tags)
        self.group, self.checkpoints = group, checkpoints
        self._run: wandb.Run | None = None

    def of(self, directory: Path, config: dict[str, Any]) -> WandbPage:
        """The page of the run in this directory, with its resolved config."""
        self.directory, self.config = directory, config
        return self

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.config["wandb_id"]

    @property
    @rank_zero_experiment
    def experiment(self) -> wandb.Run:
        """W&B's own object, which is made when it is first asked for. Raises UserError where W&B cannot be reached."""
        if self._run is None:
            import wandb

            self._remove_empty_logs()
            with asking("log in first, or use logger=wandb_offline"):
                self._run = wandb.init(
                    project=self.project,
                    entity=self.entity,
                    mode=self.mode,
                    id=self.version,
                    resume="allow",
                    name=short(f"{self.config['experiment']}/{self.config['run_id']}"),
                    group=short(self.group) if self.group else None,
                    job_type=self.config["experiment"],
                    tags=self.tags,
                    config=self.config,
                    allow_val_change=True,
                    dir=str(self.directory),
                    # Two runs in one process, as in a sweep, would otherwise share a page.
                    reinit="create_new",
                    settings={"finish_timeout": PATIENCE, "finish_timeout_raises": True},
                )
            self._run.define_metric(STEP, hidden=True)
            self._run.define_metric("*", step_metric=STEP, step_sync=True)
            self._catch_up()
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The page has the whole config from the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """A row. A name that has no section (`train/loss` is in `train`) goes to `system`."""
        row = {key if "/" in key else f"system/{key}": value for key, value in metrics.items()}
        self.experiment.log(row if step is None else row | {STEP: step})

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str], step: int | None = None) -> None:
        """Pictures, by their paths."""
        import wandb

        self.log_metrics({key: [wandb.Image(path) for path in images]}, step)

    @rank_zero_only
    def log_files(self) -> None:
        """The run's files, an artifact for each kind; W&B makes a new version of those that changed.

        The summary gets val/best_loss, of the whole run: W&B's own minimum would be that since the last restart.
        """
        import wandb

        losses = [float(row["val/loss"]) for row in read_rows(self.directory / "metrics.csv") if row.get("val/loss")]
        self.experiment.summary.update({"val/best_loss": min(losses)} if losses else {})
        for kind, paths in files_of(self.directory).items():
            if kind == "checkpoints" and not self.checkpoints:
                continue
            with asking(f"all is in {self.directory}; `python -m diffusion publish run=RUN_DIR` tries again"):
                artifact = wandb.Artifact(f"{kind}-{self.version}", type=kind)
                for path in paths:
                    artifact.add_file(str(path), name=path.relative_to(self.directory).as_posix(), skip_cache=True)
                logged = self.experiment.log_artifact(artifact)
                if not self.experiment.offline and not self.experiment.disabled:
                    logged.wait()

    def __enter__(self) -> WandbPage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is None:
            return
        if isinstance(error, Stopped):
            self._run.mark_preempting()
        run, self._run = self._run, None
        try:
            run.finish(exit_code=0 if error is None else 1)
        except TimeoutError:
            log.warning("W&B did not take all within %g s: what it lacks follows when the run goes on", PATIENCE)
            return
        steps = [row["step"] for row in read_rows(self.directory / "metrics.csv")[-1:]]
        if steps and not run.disabled:
            with suppress(OSError):  # a full disk has been told of already
                replace_file(self.directory / HELD, lambda path: path.write_text(f"{self._place} {steps[0]}\n"))

    def _catch_up(self) -> None:
        """Log what training has written of the steps that the page may lack.

        W&B writes every 15 seconds, so a killed process takes rows with it that are in metrics.csv; and a run may have
        had no page when it began.
        """
        held, rows = self._held(), read_rows(self.directory / "metrics.csv")
        for row in rows:
            if int(row["step"]) > held:
                found = {name: float(value) for name, value in row.items() if value and name != "step"}
                self.log_metrics(found, int(row["step"]))
        last = int(rows[-1]["step"]) if rows else -1
        for path in sorted(self.directory.glob("samples/*_*.png"), key=lambda path: path.stem.rpartition("_")[2]):
            name, _, step = path.stem.rpartition("_")
            if held < int(step) <= last:  # what came after the checkpoint is drawn anew
                self.log_image(f"samples/{'samples' if name == 'step' else name}", [str(path)], int(step))

    def _held(self) -> int:
        """The step up to which the page has everything, as the last process that ended it has noted."""
        path = self.directory / HELD
        place, _, step = path.read_text().rpartition(" ") if path.exists() else ("", "", "")
        return int(step) if place == self._place else -1

    @property
    def _place(self) -> str:
        return f"{self.entity or ''}/{self.project}/{self.version}"

    def _remove_empty_logs(self) -> None:
        """Of processes that were killed at once: `wandb sync` stops at them. They hold a header of 7 bytes."""
        for path in self.directory.glob(f"wandb/*run-*-{self.version}/run-{self.version}.wandb"):
            if path.stat().st_size <= 7:
                shutil.rmtree(path.parent)


def files_of(directory: Path) -> dict[str, list[Path]]:
    """The files of a run that its page takes, by the artifact that they go into; kinds that have none are left out."""
    found, taken = {}, set()
    for kind, patterns in FILES.items():
        paths = {path for pattern in patterns for path in directory.glob(pattern)} - taken
        taken |= paths
        found |= {kind: sorted(paths)} if paths else {}
    return found


def short(name: str, length: int = 128) -> str:
    """A name that W&B takes. Both ends stay: that of a trial's id, where its digest is, tells it from others."""
    return name if len(name) <= length else f"{name[: length - 43]}...{name[-40:]}"


@contextmanager
def asking(remedy: str) -> Iterator[None]:
    """Within, W&B is asked for something. Raises UserError, which ends with the remedy, where it refuses."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, (ValueError, OSError)) and type(error).__module__.split(".")[0] != "wandb":
            raise
        # Some of its checks are pydantic's, which say much around the words that help.
        details = getattr(error, "errors", None)
        said = details()[0]["msg"].removeprefix("Value error, ") if callable(details) else str(error)
        raise UserError(f"W&B: {' '.join(said.split()).rstrip('.')}; {remedy}") from error
