"""What `python train.py` leaves behind, goes on with, and refuses."""

import fcntl
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.digits import Digits
from diffusion.apps import cli
from diffusion.apps.config import CONF
from diffusion.callbacks import MetricsLog
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.errors import Stopped, UserError
from diffusion.modules import DiffusionModule
from tests.callbacks.toy import Clock
from tests.training import OFTEN, SMALL, assert_same_run, losses, run_training, start_training, state

pytestmark = pytest.mark.slow

PLAN = [
    *OFTEN,
    "callbacks.learning_rate.warmup_steps=100",
    "optimizer.lr=1e-3",
    "sampler=heun",
    "network.dropout=0.1",
]
STEPS = 8


@pytest.fixture(autouse=True)
def handlers():
    """Training takes over the process's signals; give them back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 8 steps, for looking at."""
    return run_training(tmp_path_factory.mktemp("finished"), *PLAN, f"trainer.max_steps={STEPS}")


@pytest.fixture
def again(finished, tmp_path):
    """A function that gives the same command, changed, to a copy of the finished run, in runs_dir=tmp_path."""
    shutil.copytree(finished.parent, tmp_path / finished.parent.name)

    def command(*changes: str) -> Path:
        return run_training(tmp_path, *PLAN, f"trainer.max_steps={STEPS}", *changes)

    return command


def tree(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def position(run: Path) -> int:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_files_of_a_run(finished):
    pictures = {f"samples/{kind}_{step:07d}.png" for kind in ("step", "denoising") for step in (4, 8)}
    checkpoints = {f"checkpoints/{name}.ckpt" for name in ("last", "best", "previous")}
    others = {"config.yaml", "metrics.csv", "figures/loss.png", "train.log", ".lock"}
    assert tree(finished) == pictures | checkpoints | others


def test_pictures_can_be_read(finished):
    for path in [*finished.rglob("*.png")]:
        assert len(np.unique(np.asarray(Image.open(path)))) > 2, path


def test_config_is_resolved_and_plain(finished):
    text = (finished / "config.yaml").read_text()
    assert "${" not in text and "???" not in text
    config = yaml.safe_load(text)
    assert (config["experiment"], config["run_id"], config["seed"]) == ("digits_pixel", "run", 0)
    assert config["network"]["channels"] == 8
    assert config["data"]["spec"]["shape"] == [1, 8, 8] and config["data"]["spec"]["classes"] == 10
    assert config["data"]["std"] == pytest.approx(0.75, abs=0.05)


def test_checkpoint_holds_weights_and_average_as_plain_tensors(finished):
    for name in ("last", "best"):
        content = torch.load(finished / "checkpoints" / f"{name}.ckpt", weights_only=True)
        weights = {k.removeprefix("denoiser."): v for k, v in content["state_dict"].items()}
        assert weights.keys() == content["ema"].keys()
        assert all(weights[k].shape == v.shape and v.dtype == torch.float32 for k, v in content["ema"].items())
        assert any(not torch.equal(weights[k], v) for k, v in content["ema"].items())
    assert content["global_step"] in (4, 8)


def test_metrics(finished):
    rows = read_rows(finished / "metrics.csv")
    assert [row["step"] for row in rows] == ["2", "4", "4", "6", "8", "8"]
    assert all(float(row["train/loss"]) > 0 for row in rows if row["train/loss"])
    assert all(float(row["val/loss"]) > 0 for row in rows if row["val/loss"])
    assert sum(bool(row["val/loss"]) for row in rows) == 2
    times = [float(row["elapsed_seconds"]) for row in rows]
    assert times == sorted(times)
    # Warm-up over 100 steps: the rate in the step after n steps is lr (n + 1) / 100.
    assert [float(row["train/learning_rate"]) for row in rows if row["train/loss"]] == pytest.approx(
        [2e-5, 4e-5, 6e-5, 8e-5]
    )


def test_log_names_the_run_and_the_next_command(finished):
    text = (finished / "train.log").read_text()
    assert str(finished) in text and f"python -m diffusion sample run={finished}" in text


def test_finished_run_says_so_and_does_nothing(again, tmp_path):
    run = tmp_path / "digits_pixel" / "run"
    kept = tree(run) - {"train.log", ".lock"}
    before = {name: (run / name).stat().st_mtime_ns for name in kept}
    again()
    assert {name: (run / name).stat().st_mtime_ns for name in tree(run) - {"train.log", ".lock"}} == before
    assert f"is finished (step {STEPS}," in (run / "train.log").read_text().splitlines()[-1]


@pytest.mark.parametrize("change", ["trainer.max_steps=4", "trainer.max_time=00:00:00:01"])
def test_smaller_limit_is_finished_too(again, change, monkeypatch):
    def position_after_some_time(run, checkpoint, budget):
        budget.load_state_dict({"elapsed": 1.5})
        return STEPS

    monkeypatch.setattr("diffusion.apps.train.Run.position", position_after_some_time)
    run = again(change)
    assert position(run) == STEPS


@pytest.mark.slow
def test_larger_max_steps_goes_on_as_if_it_had_been_asked_for_at_first(again, tmp_path):
    longer = again("trainer.max_steps=16")
    at_once = run_training(tmp_path / "at_once", *PLAN, "trainer.max_steps=16")
    assert position(longer) == 16
    assert_same_run(longer, at_once)


@pytest.mark.slow
def test_larger_max_steps_under_a_decaying_rate_is_another_run(tmp_path):
    decay = [*PLAN, "callbacks.learning_rate.final=0"]
    run_training(tmp_path / "a", *decay, "trainer.max_steps=4")
    longer = run_training(tmp_path / "a", *decay, "trainer.max_steps=8")
    at_once = run_training(tmp_path / "b", *decay, "trainer.max_steps=8")
    assert position(longer) == position(at_once) == 8
    assert losses(longer)[0] != losses(at_once)[0]


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("optimizer.lr=0.5", "optimizer.lr: 0.001 -> 0.5"),
        ("seed=1", "seed: 0 -> 1"),
        ("batch_size=32", "batch_size: 16 -> 32"),
        ("network.dropout=0.2", "network.dropout: 0.1 -> 0.2"),
        ("sampler=ddim", "sampler._target_: diffusion.samplers.heun -> diffusion.samplers.ddim"),
        ("guidance.scale=5", "guidance.scale: 1.65 -> 5"),
        ("trainer.log_every_n_steps=3", "trainer.log_every_n_steps: 2 -> 3"),
        ("trainer.gradient_clip_val=null", "trainer.gradient_clip_val: 1.0 -> None"),
    ],
)
def test_another_config_is_refused_with_the_difference(again, tmp_path, change, shown):
    before = state(tmp_path / "digits_pixel" / "run")
    with pytest.raises(UserError, match=re.escape(shown)) as error:
        again(change, "trainer.max_steps=12")
    assert "\n" not in str(error.value) and "another run_id" in str(error.value)
    after = state(tmp_path / "digits_pixel" / "run")
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "change",
    [
        "trainer.max_time=00:01:00:00",
        "checkpoint.every_n_steps=3",
        "accelerator=auto",
        "accelerator.precision=bf16-mixed",
        "trainer.accumulate_grad_batches=2",
        "logger=wandb_offline",
        "resume=auto",
    ],
)
def test_what_may_differ(again, change):
    run = again(change)  # finished: the config alone is judged
    assert "is finished" in (run / "train.log").read_text()


def test_resume_never_refuses_a_run_that_is_there(again):
    with pytest.raises(UserError, match="resume=never"):
        again("resume=never")


def small_npz(path: Path, seed: int = 0, labels: bool = True) -> Path:
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, n in {"train": 40, "val": 8, "test": 8}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        if labels:
            arrays[f"{split}_labels"] = np.arange(n) % 2
    np.savez(path, **arrays)
    return path


def test_the_data_may_move_but_not_change(tmp_path):
    first = small_npz(tmp_path / "first.npz")
    plan = ["dataset=npz", "trainer.max_steps=2", "network.multipliers=[1]"]
    run = run_training(tmp_path, *plan, f"dataset.path={first}")
    moved = first.rename(tmp_path / "moved.npz")
    run_training(tmp_path, *plan, f"dataset.path={moved}")
    assert "is finished" in (run / "train.log").read_text()
    small_npz(moved, seed=1)
    with pytest.raises(UserError, match=r"began on other data than .*moved\.npz now holds"):
        run_training(tmp_path, *plan, f"dataset.path={moved}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_damaged_newest_checkpoint(again, finished, tmp_path, caplog, how):
    last = tmp_path / "digits_pixel" / "run" / "checkpoints" / "last.ckpt"
    raw = bytearray(last.read_bytes())
    raw[len(raw) // 2] ^= 255
    last.write_bytes({"cut": raw[:-1000], "flipped": raw, "empty": b""}[how])
    with caplog.at_level(logging.WARNING):
        run = again()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(str(last) in line and "damaged" in line for line in warnings)
    assert "continues from step 4 (previous.ckpt)" in (run / "train.log").read_text()
    assert_same_run(run, finished)


def test_no_whole_checkpoint_is_left(again, tmp_path):
    for name in ("last", "previous"):
        (tmp_path / "digits_pixel" / "run" / "checkpoints" / f"{name}.ckpt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"damaged \(last\.ckpt, previous\.ckpt\)"):
        again()


def test_run_at_work_in_another_process(again, tmp_path):
    with (tmp_path / "digits_pixel" / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="at work in another process"):
            again("trainer.max_steps=12")
    again()


class FirstStep(Exception):
    pass


def first_step(monkeypatch, tmp_path, name: str, *overrides: str) -> tuple[list[int], torch.Tensor]:
    """The samples of the first batch, and the initial weights."""
    seen = []

    def look(module, batch, batch_idx):
        weights = torch.cat([p.detach().flatten() for p in module.network.parameters()])
        seen.append((batch["id"].tolist(), weights))
        raise FirstStep

    monkeypatch.setattr(DiffusionModule, "training_step", look)
    with pytest.raises(FirstStep):
        run_training(tmp_path / name, "trainer.max_steps=4", *overrides)
    return seen[0]


def test_seed_decides_weights_and_order(monkeypatch, tmp_path):
    torch.manual_seed(1)
    batch, weights = first_step(monkeypatch, tmp_path, "a")
    torch.manual_seed(2)
    same_batch, same_weights = first_step(monkeypatch, tmp_path, "b")
    other_batch, other_weights = first_step(monkeypatch, tmp_path, "c", "seed=1")
    assert batch == same_batch and torch.equal(weights, same_weights)
    assert batch != other_batch and not torch.equal(weights, other_weights)


def kill_self_at(monkeypatch, step: int, number: int) -> None:
    """Send this process a signal in the middle of a training step."""
    original = DiffusionModule.training_step

    def signalled(module, batch, batch_idx):
        if module.global_step == step:
            os.kill(os.getpid(), number)
        return original(module, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", signalled)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_the_same_command_finishes(monkeypatch, tmp_path, finished, number):
    plan = [*PLAN, f"trainer.max_steps={STEPS}"]
    with monkeypatch.context() as patch:
        kill_self_at(patch, 4, number)
        with pytest.raises(Stopped):
            run_training(tmp_path, *plan)
    run = tmp_path / "digits_pixel" / "run"
    assert position(run) == 5
    text = (run / "train.log").read_text()
    assert f"stopped by {signal.Signals(number).name} at step 5" in text and "finished" not in text
    run_training(tmp_path, *plan)
    assert "continues from step 5" in (run / "train.log").read_text()
    assert_same_run(run, finished)


def test_signal_before_a_run_has_begun_leaves_nothing(monkeypatch, tmp_path, capfd):
    load = Digits.load

    def signalled(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(self)

    monkeypatch.setattr(Digits, "load", signalled)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # cli.run changes it
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: run_training(tmp_path, *PLAN, "trainer.max_steps=8"))
    assert end.value.code == 75
    assert "stopped by SIGTERM before the first step" in capfd.readouterr().err
    assert not (tmp_path / "digits_pixel").exists()


@pytest.mark.slow
def test_signals_from_outside(tmp_path):
    """A process that is told to stop, twice, ends with status 75, and the third one ends as if nothing had been."""
    plan = [*PLAN, "trainer.max_steps=100", "trainer.validate_every_n_steps=50", "checkpoint.every_n_steps=50"]
    run = tmp_path / "stopped" / "digits_pixel" / "run"
    stopped_at = 0
    for number, after in ((signal.SIGTERM, 0), (signal.SIGUSR1, 20)):
        process = start_training(tmp_path / "stopped", *plan)
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            rows = read_rows(run / "metrics.csv")
            if rows and int(rows[-1]["step"]) > max(after, stopped_at):
                break
            time.sleep(0.02)
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == 75
        stopped_at = position(run)
        assert after < stopped_at < 100
        read = read_rows(run / "metrics.csv")
        assert int(read[-1]["step"]) <= stopped_at
    for folder in ("stopped", "whole"):
        process = start_training(tmp_path / folder, *plan)
        process.join(120)
        assert process.exitcode == 0
    assert_same_run(run, tmp_path / "whole" / "digits_pixel" / "run")


@pytest.mark.slow
def test_time_counts_over_restarts(monkeypatch, tmp_path):
    clock = Clock()
    monkeypatch.setattr("diffusion.callbacks.budget.time", clock)
    original = DiffusionModule.training_step

    def slow(module, batch, batch_idx):
        clock.now += 10
        return original(module, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", slow)
    plan = [*PLAN, "trainer.max_time=00:00:01:00"]
    with monkeypatch.context() as patch:
        kill_self_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Stopped):
            run_training(tmp_path, *plan)
    clock.now += 10_000
    run = run_training(tmp_path, *plan)
    assert position(run) == 6  # of ten seconds each
    assert read_rows(run / "metrics.csv")[-1]["elapsed_seconds"] == "60.0"
    run_training(tmp_path, *plan)
    assert "is finished (step 6, 0:01:00)" in (run / "train.log").read_text()


@pytest.mark.slow
def test_full_disk_ends_the_run_with_its_last_checkpoint_whole(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        plan = [*PLAN, "trainer.max_steps=40", "callbacks.previews.every_n_steps=1000"]
        filler = disk / "filler"

        class Filling(MetricsLog):
            """Leaves half a checkpoint's space from step 10 on."""

            def on_train_batch_end(self, trainer, *args):
                super().on_train_batch_end(trainer, *args)
                if trainer.global_step == 10:
                    free = shutil.disk_usage(disk).free
                    filler.write_bytes(b"0" * max(0, free - 400_000))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusion.callbacks.MetricsLog", Filling)
            with pytest.raises(UserError, match="cannot write checkpoint") as error:
                run_training(disk, *plan)
        assert "\n" not in str(error.value)
        run = disk / "digits_pixel" / "run"
        assert position(run) == 8 and not list(run.rglob(".*.tmp"))
        filler.unlink()
        assert position(run_training(disk, *plan)) == 40
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """The command as a user types it, with two CPU processes in place of two GPUs."""
    plan = [*PLAN, "network.dropout=0", "trainer.max_steps=4"]
    overrides = [*SMALL, *plan, f"runs_dir={tmp_path}/two", "accelerator=cpu_ddp"]
    # No run_id: both processes must come to the same one.
    command = [sys.executable, "train.py", *overrides]
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "two" / "digits_pixel").iterdir()
    found, wanted = state(run), state(run_training(tmp_path / "one", *plan))
    for name, value in wanted.items():
        if not name.startswith("optimizer"):
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
