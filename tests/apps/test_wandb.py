"""What reaches Weights & Biases: read back from what was written offline, and at a server's end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from diffusion.apps import tasks
from diffusion.apps.config import CONF
from diffusion.apps.run_directory import claimed
from diffusion.callbacks import MetricsLog, WandbPage
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.callbacks.wandb_page import short
from diffusion.errors import Stopped, UserError
from diffusion.modules import DiffusionModule
from tests.commands import diffusion, refusal
from tests.training import OFTEN, SMALL, run_training
from tests.wandb_records import artifacts, history, logs_of, of_kind, summary
from tests.wandb_server import KEY, wandb_server

pytestmark = pytest.mark.slow

STEP = "trainer/global_step"
SECTIONS = {"train", "val", "loss_by_noise", "samples", "eval", "system"}
PLAN = [
    *OFTEN,
    "logger=wandb_offline",
]


def quiet(folder: Path) -> dict[str, str]:
    """Variables that keep W&B to itself, and its files in one folder."""
    return {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_API_KEY": "",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_DATA_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder),
        "WANDB_CONFIG_DIR": str(folder),
    }


@pytest.fixture(scope="module", autouse=True)
def variables(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quiet(tmp_path_factory.mktemp("wandb")).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def handlers():
    """Training takes over the process's signals; give them back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Path:
    """A finished trial of a sweep, of eight steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MED_DIFFUSION_SWEEP", "runs/sweeps/night")
        words = [*PLAN, "trainer.max_steps=8", "logger.checkpoints=true", "logger.tags=[first,try]"]
        return run_training(tmp_path_factory.mktemp("trial"), *words)


@pytest.fixture
def records(trial) -> list:
    return logs_of(trial)[0]


def logged(rows: list[dict]) -> list[dict[str, float]]:
    """The rows of metrics.csv, or of W&B's history, that hold losses: without what depends on the clock or W&B adds."""
    found = []
    for row in rows:
        step = row[STEP] if STEP in row else row["step"]
        losses = {key: float(value) for key, value in row.items() if key.endswith("loss") and value != ""}
        if losses:
            found.append({"step": int(step), **losses})
    return found


def test_a_page_has_the_id_group_and_config_of_its_run(trial, records):
    config = yaml.safe_load((trial / "config.yaml").read_text())
    (run,) = of_kind(records, "run")
    assert run.run_id == config["wandb_id"] and run.resume
    assert (run.project, run.display_name) == ("med-diffusion", "digits_pixel/run")
    assert (run.run_group, run.job_type, list(run.tags)) == ("night", "digits_pixel", ["first", "try"])
    assert config["logger"]["group"] == "night"
    found = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: found[key] for key in config} == config
    assert [end.exit_code for end in of_kind(records, "exit")] == [0]


def test_a_page_has_every_row_over_the_optimizer_step_in_its_section(trial, records):
    rows = history(records)
    assert logged(rows) == logged(read_rows(trial / "metrics.csv"))
    steps = [row[STEP] for row in rows]
    assert steps == sorted(steps) and {2, 4, 6, 8} == set(steps)
    names = {key for row in rows for key in row if not key.startswith("_") and key != STEP}
    assert {name.split("/")[0] for name in names} == SECTIONS - {"eval"}
    assert {"train/loss", "val/loss", "loss_by_noise/log_snr_above_6", "system/elapsed_seconds"} <= names
    metrics = {metric.name or metric.glob_name: metric.step_metric for metric in of_kind(records, "metric")}
    assert metrics == {STEP: "", "*": STEP}
    best = min(float(row["val/loss"]) for row in read_rows(trial / "metrics.csv") if row["val/loss"])
    assert summary(records)["val/best_loss"] == best


def test_a_page_has_the_pictures_at_their_steps(trial, records):
    (folder,) = trial.glob("wandb/offline-run-*/files")
    for name, stem in (("samples", "step"), ("denoising", "denoising")):
        rows = [row for row in history(records) if f"samples/{name}/filenames" in row]
        assert [row[STEP] for row in rows] == [4, 8]
        for row in rows:
            (path,) = row[f"samples/{name}/filenames"]
            assert (folder / path).read_bytes() == (trial / f"samples/{stem}_{row[STEP]:07d}.png").read_bytes()


def test_a_page_has_the_files_of_the_run_as_artifacts(trial, records):
    found = artifacts(records)
    assert {kind: sorted(files) for kind, files in found.items()} == {
        "config": ["config.yaml"],
        "metrics": ["figures/loss.png", "metrics.csv", "train.log"],
        "trajectories": ["samples/denoising_0000004.png", "samples/denoising_0000008.png"],
        "grids": ["samples/step_0000004.png", "samples/step_0000008.png"],
        "checkpoints": ["checkpoints/best.ckpt", "checkpoints/last.ckpt"],
    }
    for files in found.values():
        for name, waiting in files.items():
            if name != "train.log":  # which has gone on
                assert waiting.read_bytes() == (trial / name).read_bytes()


def test_two_runs_of_a_process_have_a_page_each(tmp_path):
    found = [run_training(tmp_path, *PLAN, "trainer.max_steps=2", f"run_id={name}") for name in "ab"]
    for run in found:
        (records,) = logs_of(run)
        (page,) = of_kind(records, "run")
        assert page.run_id == yaml.safe_load((run / "config.yaml").read_text())["wandb_id"]
        assert page.run_group == "" and "checkpoints" not in artifacts(records)
        assert logged(history(records)) == logged(read_rows(run / "metrics.csv"))
    assert len({page.run_id for run in found for page in of_kind(logs_of(run)[0], "run")}) == 2


def test_long_names_are_cut_and_stay_apart():
    names = [f"{'network.channels=8,' * 12}-{digest:016x}" for digest in (1, 2)]
    cut = [short(name) for name in names]
    assert [len(name) for name in cut] == [128, 128] and cut[0] != cut[1]
    assert short("digits_pixel/run") == "digits_pixel/run" and short("x" * 128) == "x" * 128


def test_a_page_that_is_disabled_leaves_nothing(tmp_path):
    run = run_training(tmp_path, *PLAN, "trainer.max_steps=2", "logger=wandb_disabled")
    assert not (run / "wandb").exists() and not (run / ".wandb_step").exists()


def failing_at(patch, step: int, error: Exception) -> None:
    """Training raises the error after the row of a step, before its checkpoint."""
    original = MetricsLog.on_train_batch_end

    def ending(self, trainer, *args):
        original(self, trainer, *args)
        if trainer.global_step == step:
            raise error

    patch.setattr(MetricsLog, "on_train_batch_end", ending)


def test_a_run_that_failed_goes_on_under_its_id_and_loses_no_row(monkeypatch, tmp_path):
    plan = [*PLAN, "trainer.max_steps=8"]
    with monkeypatch.context() as patch:
        failing_at(patch, 6, UserError("the disk is full"))
        with pytest.raises(UserError, match="disk"):
            run_training(tmp_path, *plan)
    run = run_training(tmp_path, *plan)
    first, second = logs_of(run)
    assert [end.exit_code for part in (first, second) for end in of_kind(part, "exit")] == [1, 0]
    assert not list(of_kind(first, "artifact")) and not list(of_kind(first, "preempting"))
    ids = {(page.run_id, page.resume) for part in (first, second) for page in of_kind(part, "run")}
    assert len(ids) == 1 and all(resume for _, resume in ids)
    before, after = logged(history(first)), logged(history(second))
    # Step 6 came after the checkpoint of step 4: it is there twice, with the same values.
    assert [row["step"] for row in before] == [2, 4, 4, 6] and [row["step"] for row in after] == [6, 8, 8]
    assert before[-1] == after[0]
    assert before[:-1] + after == logged(read_rows(run / "metrics.csv"))


def test_a_run_that_was_stopped_is_marked_as_preempted(monkeypatch, tmp_path):
    original = DiffusionModule.training_step

    def signalled(module, *args):
        if module.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(module, *args)

    monkeypatch.setattr(DiffusionModule, "training_step", signalled)
    with pytest.raises(Stopped):
        run_training(tmp_path, *PLAN, "trainer.max_steps=8")
    (records,) = logs_of(tmp_path / "digits_pixel" / "run")
    assert len(list(of_kind(records, "preempting"))) == 1
    assert [end.exit_code for end in of_kind(records, "exit")] == [1]


def test_a_killed_run_goes_on_and_sync_finds_all_of_it(tmp_path):
    plan = [*PLAN, "trainer.max_steps=12"]
    words = [*SMALL, *plan, f"runs_dir={tmp_path}", "run_id=run"]
    program = f"from tests.training import _child; _child({words!r}, (7, 0.0), {{}})"
    # With a W&B service of its own, as on a cluster, and not that of this process.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = subprocess.run([sys.executable, "-c", program], cwd=CONF.parent, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    # W&B had written nothing yet, and `wandb sync` would stop at what it left.
    (left,) = (tmp_path / "digits_pixel" / "run").glob("wandb/offline-run-*/run-*.wandb")
    assert left.stat().st_size == 7
    run = run_training(tmp_path, *plan)
    run_training(tmp_path, *PLAN, "trainer.max_steps=16")
    assert not left.exists()
    parts = [history(records) for records in logs_of(run)]
    assert len(parts) == 2
    with wandb_server() as (address, pages):
        environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
        command = [Path(sys.executable).with_name("wandb"), "sync", run / "wandb"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    (page,) = pages.values()
    assert list(pages) == [yaml.safe_load((run / "config.yaml").read_text())["wandb_id"]]
    assert [row["_step"] for row in page.history] == list(range(sum(map(len, parts))))
    assert logged(page.history) == logged(read_rows(run / "metrics.csv"))
    pictures = [row for row in page.history if "samples/samples" in row]
    assert [row[STEP] for row in pictures] == [4, 8, 12, 16]
    assert page.ends == [0, 0] and not page.preempted
    assert set(page.artifacts) == {"config", "grids", "metrics", "trajectories"}


ONLINE = """
import os, signal
from pathlib import Path
from diffusion.errors import Stopped
from diffusion.modules import DiffusionModule
from tests.training import run_training
original = DiffusionModule.training_step
def signalled(module, *args):
    if module.global_step == 5:
        DiffusionModule.training_step = original
        os.kill(os.getpid(), signal.SIGTERM)
    return original(module, *args)
DiffusionModule.training_step = signalled
for part in range(2):
    try:
        run_training(Path({folder!r}), *{plan!r})
    except Stopped:
        assert part == 0
"""


def run_online(folder: Path, address: str, first: str = "") -> Path:
    """Train eight steps, stopped by a signal and started again; in a process, for W&B reads its variables once."""
    program = first + ONLINE.format(folder=str(folder), plan=[*PLAN, "trainer.max_steps=8", "logger=wandb"])
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=CONF.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "digits_pixel" / "run"


def test_a_run_that_is_stopped_online_appends_to_its_page(tmp_path):
    with wandb_server() as (address, pages):
        run = run_online(tmp_path, address)
    (page,) = pages.values()
    assert page.facts["name"] == yaml.safe_load((run / "config.yaml").read_text())["wandb_id"]
    assert logged(page.history) == logged(read_rows(run / "metrics.csv"))
    assert [row["_step"] for row in page.history] == list(range(len(page.history)))
    assert page.ends == [1, 0] and page.preempted
    assert page.summary["val/best_loss"] == min(row["val/loss"] for row in page.history if "val/loss" in row)


def test_a_network_that_hangs_does_not_keep_a_run_from_ending(tmp_path):
    with wandb_server(stalled=True) as (address, _):
        run = run_online(tmp_path, address, "import diffusion.callbacks.wandb_page as w\nw.PATIENCE = 2.0\n")
    text = (run / "train.log").read_text()
    assert text.count("W&B did not take all within 2 s") == 2 and "finished; go on with" in text
    assert not (run / ".wandb_step").exists()  # so that all of it is logged again


def test_other_processes_than_the_first_write_nothing(monkeypatch, tmp_path):
    from pytorch_lightning.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with WandbPage("med-diffusion", mode="offline").of(tmp_path, {"wandb_id": "abc"}) as page:
        page.log_metrics({"train/loss": 1.0}, 1)
        page.log_image("samples/samples", [str(tmp_path / "none.png")], 1)
        page.experiment.log({"train/loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_two_processes_have_one_page(tmp_path):
    words = [*SMALL, *PLAN, "network.dropout=0", "trainer.max_steps=2", f"runs_dir={tmp_path}", "run_id=run"]
    command = [sys.executable, "train.py", *words, "accelerator.devices=2", "accelerator.strategy=ddp"]
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "digits_pixel" / "run"
    (records,) = logs_of(run)
    assert logged(history(records)) == logged(read_rows(run / "metrics.csv"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run that was logged to metrics.csv alone."""
    return run_training(tmp_path_factory.mktemp("alone"), *PLAN, "trainer.max_steps=4", "logger=csv")


@pytest.fixture
def judged(alone, tmp_path) -> Path:
    """The same, with what tasks leave."""
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    receipt = {
        "n": 20,
        "metrics": {"fid": {"test": {"value": 1.5, "low": 1.0, "high": 2.0, "n": 20, "floor": {"value": 0.5}}}},
        "classes": {"0": {"fid": 3.0}},
        "receipt": {"seconds": 7},
        "gated": True,
    }
    for folder, content in (("evaluate", receipt), ("sample", {"n": 4, "sampler": "heun", "ema": {"length": 0.1}})):
        (run / folder).mkdir()
        (run / folder / "metrics.json").write_text(json.dumps(content))
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 128, 255)]
    frames[0].save(run / "sample" / "trajectory.gif", save_all=True, append_images=frames[1:])
    frames[1].save(run / "sample" / "grid.png")
    (run / "report.html").write_text("<p>All is well.</p>")
    return run


def test_publish_shows_a_run_that_had_no_page(judged, capfd):
    line = refusal(capfd, diffusion, "publish", f"run={judged}")
    assert "has no page" in line and "logger=wandb" in line and not (judged / "wandb").exists()
    tasks.main(["publish", f"run={judged}", "logger=wandb_offline", "logger.checkpoints=true"])
    tasks.main(["publish", f"run={judged}", "logger=wandb_offline"])
    first, again = logs_of(judged)
    assert logged(history(first)) == logged(read_rows(judged / "metrics.csv"))
    shown = {key for row in history(first) for key in row}
    assert {"samples/samples/filenames", "samples/denoising/filenames"} <= shown
    for records in (first, again):
        (page,) = of_kind(records, "run")
        assert page.run_id == yaml.safe_load((judged / "config.yaml").read_text())["wandb_id"] and page.resume
        row = history(records)[-1]
        assert row[STEP] == 4
        files = {key: row[f"{key}/path"] for key in ("samples/sample/grid", "samples/sample/trajectory", "eval/report")}
        (folder,) = (path.parent for path in judged.glob(f"wandb/offline-run-*/files/{files['eval/report']}"))
        base = folder.parents[len(Path(files["eval/report"]).parts) - 2]
        for key, name in (("samples/sample/grid", "sample/grid.png"), ("eval/report", "report.html")):
            assert (base / files[key]).read_bytes() == (judged / name).read_bytes()
        results = {key: value for key, value in summary(records).items() if key.startswith("eval/")}
        assert {key: value for key, value in results.items() if not key.startswith("eval/report")} == {
            "eval/evaluate/n": 20,
            "eval/evaluate/fid/test": 1.5,
            "eval/evaluate/fid/test/floor": 0.5,
            "eval/sample/n": 4,
            "eval/sample/ema/length": 0.1,
        }
        kinds = artifacts(records)
        assert sorted(kinds["receipts"]) == ["evaluate/metrics.json", "sample/metrics.json"]
        assert "sample/trajectory.gif" in kinds["trajectories"] and "sample/grid.png" in kinds["grids"]
        assert list(kinds["report"]) == ["report.html"]
    assert "checkpoints" in artifacts(first) and "checkpoints" not in artifacts(again)
    assert len(history(again)) == 1


def test_publish_takes_the_page_that_the_run_has(trial):
    tasks.main(["publish", f"run={trial}"])
    *_, records = logs_of(trial)
    (page,) = of_kind(records, "run")
    assert (page.run_group, list(page.tags)) == ("night", ["first", "try"])
    assert "checkpoints" in artifacts(records) and not logged(history(records))


def test_publish_leaves_a_run_that_is_at_work_alone(judged, capfd):
    with claimed(judged):
        line = refusal(capfd, diffusion, "publish", f"run={judged}", "logger=wandb_offline")
    assert "is at work in another process" in line and not (judged / "wandb").exists()
