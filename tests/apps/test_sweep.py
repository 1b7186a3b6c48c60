"""Sweeps: what their trials are called, what is left of them, how they end, and what they leave."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from hydra.types import RunMode

from diffusion.apps import cli
from diffusion.apps.config import CONF
from diffusion.apps.launchers import job_id
from diffusion.apps.sweep import Sweep
from diffusion.apps.sweep_results import Axis, ranked, save_results
from diffusion.apps.sweep_signals import passed_on
from diffusion.apps.trials import Trial, run_composed, sweep_name, trial_id, trials_of
from diffusion.errors import Stopped, UserError
from diffusion.files import claim
from tests.commands import diffusion, refusal, train_py
from tests.training import SMALL, assert_same_run, join, started

TRIAL = [
    *SMALL,
    "trainer.validate_every_n_steps=30",
    "trainer.log_every_n_steps=10",
    "checkpoint.every_n_steps=10",
    "callbacks.previews.every_n_steps=1000",
    "callbacks.learning_rate.final=1",
]


def records(folder: Path) -> dict[str, dict]:
    """What is known of each trial, by the words in which it differs."""
    found = [json.loads(path.read_text()) for path in folder.glob("sweeps/*/trials/*.json")]
    return {
        trial.called: trial.read() for trial in trials_of(next(folder.glob("sweeps/*")), [f["words"] for f in found])
    }


def statuses(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["status"] for path in folder.glob("sweeps/*/trials/*.json")]


def status_of(*words: str) -> tuple[int, str]:
    """How `python train.py -m WORDS` ends, in this process."""
    with mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0"}):
        try:
            train_py("-m", *words)
        except SystemExit as end:
            return end.code
    return 0


def test_a_trial_is_called_by_its_sorted_words():
    words = ["seed=1", "scheduler=cosine", "model=latent_ddpm"]
    assert trial_id(words) == trial_id(words[::-1]) == "model=latent_ddpm,scheduler=cosine,seed=1"
    assert trial_id([*words, "runs_dir=elsewhere", "logger=wandb", "logger.project=a", "run_id=b"]) == trial_id(words)
    assert trial_id([]) == "defaults"
    long = trial_id([f"callbacks.previews.n={'9' * 300}"])
    assert len(long) < 255 and long != trial_id([f"callbacks.previews.n={'9' * 301}"])
    # What a file name cannot hold is replaced, and then a digest tells two apart.
    assert trial_id(["a=x/y"]) != trial_id(["a=x:y"])
    assert "/" not in trial_id(["dataset.path=/a/b"])


def test_a_sweep_is_called_by_what_it_sweeps_over():
    words = ["scheduler=edm,cosine", "seed=0,1"]
    assert sweep_name(words, words) == "scheduler=edm,cosine,seed=0,1"
    assert sweep_name(["runs_dir=x", *words[::-1]], words) == "scheduler=edm,cosine,seed=0,1"
    one, other = (sweep_name([*words, f"trainer.max_steps={n}"], words) for n in (5, 6))
    assert one != other and one.startswith("scheduler=edm,cosine,seed=0,1-")
    assert sweep_name(["sweep=parts", "runs_dir=x"], []) == "parts"


def test_trials_are_called_by_the_words_in_which_they_differ(tmp_path):
    trials = trials_of(tmp_path, [["a=1", "b=1", "c=0"], ["a=1", "b=2", "c=0"], ["a=1", "b=1", "c=0"]])
    assert [trial.called for trial in trials] == ["b=1", "b=2"]


def test_an_axis_has_names_evenly_and_numbers_at_their_size():
    assert Axis.of(["v", "eps", "x0"]).heights == [0.5, 0.0, 1.0]
    assert Axis.of(["1", "3", "2"]).heights == [0.0, 1.0, 0.5]
    assert Axis.of(["0.0001", "0.001", "0.01"]).heights == pytest.approx([0, 0.5, 1])
    assert Axis.of(["7", "7"]).marks == [(0.5, "7")]
    marks = Axis.of([str(i) for i in range(100)]).marks
    assert marks[0] == (1.0, "99") and len(marks) == 15
    # Values that differ little are told apart.
    assert [text for _, text in Axis.of(["1.0845", "1.0843", "1.0849"]).marks] == ["1.0849", "1.0845", "1.0843"]


def trial_with(folder: Path, word: str, rows: list[tuple[int, str]], status: str = "finished") -> Trial:
    """A trial whose run has logged these values of val/loss."""
    run = folder / "digits_pixel" / word
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    text = "".join(f"{step},{value},{step}\n" for step, value in rows)
    (run / "metrics.csv").write_text("step,val/loss,elapsed_seconds\n" + text)
    trial = Trial(folder / "sweeps" / "s", (word,), word)
    trial.note(status=status, run=str(run), error=None)
    return trial


def test_the_last_value_counts_and_what_has_none_comes_last(tmp_path):
    trials = [
        trial_with(tmp_path, "a=1", [(10, "0.1"), (20, "0.5")]),
        trial_with(tmp_path, "a=2", [(10, "0.9"), (20, "0.4"), (30, "")]),
        trial_with(tmp_path, "a=3", [(10, "0.01")], status="running"),
        trial_with(tmp_path, "a=4", []),
        Trial(tmp_path / "sweeps" / "s", ("a=5",), "a=5"),
        trial_with(tmp_path, "a=6", [(10, "inf")]),
    ]
    rows, metric = ranked(trials, None, False)
    assert metric == "val/loss"
    assert [(row.trial.called, row.place) for row in rows[:2]] == [("a=2", 1), ("a=1", 2)]
    assert {row.trial.called: (row.place, row.status) for row in rows[2:]} == {
        "a=3": (None, "cut"), "a=4": (None, "finished"), "a=5": (None, "not begun"), "a=6": (None, "finished"),
    }  # fmt: skip
    assert [row.trial.called for row in ranked(trials, "val/loss", True)[0][:2]] == ["a=1", "a=2"]


def test_the_page_and_the_table_name_every_trial(tmp_path):
    trials = [
        trial_with(tmp_path, f"scheduler={name}", [(10, value)]) for name, value in (("<b>", "0.2"), ("edm", "0.1"))
    ]
    Trial(tmp_path / "sweeps" / "s", ("scheduler=bad",)).note(status="failed", error="no <such> thing", run="")
    save_results(
        tmp_path / "sweeps" / "s", [*trials, Trial(tmp_path / "sweeps" / "s", ("scheduler=bad",))], None, False
    )
    with (tmp_path / "sweeps" / "s" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["place"], row["scheduler"], row["val/loss"], row["status"]) for row in rows] == [
        ("1", "edm", "0.1", "finished"), ("2", "<b>", "0.2", "finished"), ("", "bad", "", "failed"),
    ]  # fmt: skip
    page = (tmp_path / "sweeps" / "s" / "sweep.html").read_text()
    assert "no &lt;such&gt; thing" in page and "<td>&lt;b&gt;</td>" in page and "<td><b></td>" not in page
    assert page.count('id="coordinates-trial-') == 2 and "://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_failed_trial_does_not_end_a_sweep_and_what_is_finished_is_not_done_again(tmp_path, capfd):
    words = [*TRIAL, f"runs_dir={tmp_path}", "trainer.max_steps=2", "seed=0,1", "batch_size=0,16"]
    assert status_of(*words) == cli.EXIT_FAILED
    said = capfd.readouterr().err
    assert said.endswith(
        "2 of 4 trials failed, the first of them, batch_size=0 seed=0: batch_size=0: give a number above 0\n"
    )
    known = records(tmp_path)
    assert {name: facts["status"] for name, facts in known.items()} == {
        "batch_size=0 seed=0": "failed", "batch_size=16 seed=0": "finished",
        "batch_size=0 seed=1": "failed", "batch_size=16 seed=1": "finished",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "sweeps").iterdir()} == {next((tmp_path / "sweeps").iterdir()).name}
    runs = {Path(facts["run"]) for facts in known.values() if facts["status"] == "finished"}
    assert set((tmp_path / "digits_pixel").iterdir()) == runs
    before = {run: (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns for run in runs}
    assert status_of(*words) == cli.EXIT_FAILED
    assert "4 trials, 2 of them finished before" in capfd.readouterr().err
    # The command that a trial prints can be given as it is.
    printed = next(line.split() for line in said.splitlines() if line.startswith("  python -m diffusion sample"))
    diffusion(*printed[3:], "n=4", "grid.steps=2")
    assert (min(runs) / "sample" / "samples.npz").exists() or (max(runs) / "sample" / "samples.npz").exists()
    assert {run: (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns for run in runs} == before
    assert {facts["attempts"] for facts in records(tmp_path).values()} == {1, 2}
    # A run that was removed is made anew.
    gone = min(runs)
    for path in sorted(gone.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    status_of(*words)
    assert (gone / "checkpoints" / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=0,1", "run_id=a"], "the trials make their own ids"),
        (["seed=0,1", "accelerator=gpu_ddp"], "torchrun --nproc-per-node=2 train.py -m seed=0,1 accelerator=gpu_ddp"),
        (["seed=0,1", "accelerator.devices=4"], "--nproc-per-node=4"),
        (["scheduler=edm,coine"], "did you mean cosine?"),
        (["seed=0,1", "optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["sweep=pars"], "did you mean parts?"),
        (["seed=0,1", "hydra/launcher=slrm"], "did you mean slurm?"),
        (["optimizer.lr=interval(1,2)"], "tune 'optimizer.lr=interval(1,2)' runs_dir="),
        (["batch_size=32,big"], "batch_size"),
        (["network.channels=[8,16],16"], "network.channels=[8, 16]: give a whole number"),
        (["logger=csv,wandb_offline"], "logger alone is one trial"),
        (["runs_dir=a,b"], "runs_dir alone is one trial"),
    ],
)
def test_a_mistake_is_one_line_before_the_first_trial(words, said, tmp_path, capfd):
    line = refusal(capfd, train_py, "-m", *words, f"runs_dir={tmp_path}/runs")
    assert said in line
    assert not (tmp_path / "runs").exists()


@contextmanager
def at_work_elsewhere(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process, at work on the trial seed=0 until it is killed."""
    program = """if True:
        import pathlib, sys, time
        from diffusion.apps.trials import Trial
        with Trial(pathlib.Path(sys.argv[1]), ("seed=0",)).recorded():
            print("ready", flush=True)
            time.sleep(1000)
    """
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, cwd=CONF.parent, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        yield other


def test_a_record_of_a_process_that_is_gone_is_not_that_of_another_with_its_number(tmp_path):
    trial = Trial(tmp_path, ("seed=0",))
    trial.note(status="running", host=socket.gethostname(), pid=os.getppid(), job=job_id())
    assert not trial.at_work
    with at_work_elsewhere(tmp_path) as other:
        assert trial.read()["pid"] == other.pid and trial.at_work
        other.kill()
    assert not trial.at_work


def test_a_signal_stops_the_sweep_though_it_breaks_the_launcher(tmp_path):
    trial = Trial(tmp_path, ("seed=0",))
    stopped = pytest.raises(Stopped, match="sweep stopped by SIGTERM")
    with at_work_elsewhere(tmp_path) as other, stopped, passed_on([trial]):
        signal.raise_signal(signal.SIGTERM)
        other.wait()
        raise RuntimeError("a worker process was unexpectedly terminated")
    assert other.returncode == -signal.SIGTERM


def test_a_trial_waits_for_a_run_that_is_at_work_for_another_command(tmp_path, capsys):
    run = tmp_path / "digits_pixel" / "seed=0"
    run.mkdir(parents=True)
    other = claim(run / ".lock")
    threading.Timer(0.5, other.close).start()
    began = time.monotonic()
    Trial(tmp_path / "sweeps" / "s", ("seed=0",)).begins(run)
    assert time.monotonic() - began > 0.4
    assert capsys.readouterr().err == f"waiting: run {run} is at work for another command\n"


def test_a_metric_that_no_trial_has_and_losses_that_do_not_compare_are_told(tmp_path, capsys):
    trials = [trial_with(tmp_path, f"objective={name}", [(10, "0.1")]) for name in ("edm", "simple")]
    with pytest.raises(UserError, match=r"val/los: no trial has it; did you mean val/loss\?"):
        Sweep("val/los")._conclude(trials, ["objective=edm,simple"])
    Sweep()._conclude(trials, ["seed=0,1"])
    assert capsys.readouterr().err == ""
    Sweep()._conclude(trials, ["objective=edm,simple"])
    assert "val/loss means something else for each objective" in capsys.readouterr().err


def test_what_breaks_one_process_of_a_trial_alone_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MED_DIFFUSION_SWEEP", str(tmp_path))
    with mock.patch("diffusion.apps.trials.HydraConfig") as hydra:
        hydra.get().mode, hydra.get().overrides.task = RunMode.MULTIRUN, ["seed=0"]
        with mock.patch(
            "diffusion.apps.train.train", side_effect=UserError("a mistake, which the first process tells")
        ):
            run_composed(None)
        assert capsys.readouterr().err == ""
        with mock.patch("diffusion.apps.train.train", side_effect=MemoryError("this GPU is full")):
            run_composed(None)
    said = capsys.readouterr().err
    assert said.startswith("process 1:\nTraceback") and said.rstrip().endswith("MemoryError: this GPU is full")
    assert not (tmp_path / "trials").exists()


def test_what_another_sweep_has_finished_is_taken_over(tmp_path):
    done = trial_with(tmp_path, "seed=0", [(10, "0.1")])
    longer = Trial(tmp_path / "sweeps" / "longer", ("seed=0",))
    assert not longer.finished
    longer.adopt()
    assert longer.finished and longer.read()["run"] == done.read()["run"]
    other = Trial(tmp_path / "sweeps" / "longer", ("seed=1",))
    other.adopt()
    assert other.status is None


def test_the_printed_table_keeps_places_and_the_metric_where_there_is_no_terminal(tmp_path, capsys):
    keys = ["callbacks.learning_rate.warmup_steps", "optimizer.weight_decay", "parameterization", "network.channels"]
    words = [[f"{key}={n}" for key in keys] for n in (1, 2)]
    trials = [trial_with(tmp_path, f"n={n}", [(10, f"0.123{n}")]) for n in (1, 2)]
    named = [Trial(tmp_path / "sweeps" / "t", tuple(each)) for each in words]
    for trial, there in zip(named, trials, strict=True):
        trial.note(**(there.read() | {"id": trial.id, "words": trial.words}))
    save_results(tmp_path / "sweeps" / "t", named, None, False)
    head, first, second, *_ = capsys.readouterr().err.splitlines()
    assert head.split() == [
        "val/loss",
        "steps",
        "seconds",
        "status",
        "warmup_steps",
        "weight_decay",
        *keys[2:3],
        "channels",
    ]
    assert first.split() == ["1", "0.1231", "10", "10", "finished", *"1111"]
    assert second.split() == ["2", "0.1232", "10", "10", "finished", *"2222"]


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def held(path: Path) -> bool:
    file = claim(path)
    if file is not None:
        file.close()
    return file is None


def steps(folder: Path) -> list[int]:
    """How far each trial's run has been logged."""
    found = [path.read_text().splitlines()[1:] for path in sorted(folder.glob("digits_pixel/*/metrics.csv"))]
    return [int(rows[-1].split(",")[0]) if rows else 0 for rows in found]


def sweep(*words: str) -> None:
    """The command, in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    train_py("-m", *TRIAL, *words)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Path:
    """A sweep that nothing disturbs."""
    folder = tmp_path_factory.mktemp("quiet")
    assert join([started(sweep, f"runs_dir={folder}", "seed=0,1,2", "trainer.max_steps=60")], 200) == [0]
    return folder


@pytest.mark.slow
def test_a_driver_that_is_killed_or_stopped_goes_on_with_exactly_what_is_left(quiet, tmp_path):
    """Cut in the first trial by SIGKILL, in the second by SIGTERM, in the third by SIGKILL."""
    words = [f"runs_dir={tmp_path}", "seed=0,1,2", "trainer.max_steps=60"]
    for number, reached in ((signal.SIGKILL, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 3)):
        driver = started(sweep, *words)
        wait_until(lambda n=reached: len(steps(tmp_path)) == n and any(20 <= step < 60 for step in steps(tmp_path)))
        os.kill(driver.pid, number)
        assert join([driver], 60) == [75 if number == signal.SIGTERM else -number]
    assert join([started(sweep, *words)], 200) == [0]
    for run in (quiet / "digits_pixel").iterdir():
        assert_same_run(tmp_path / "digits_pixel" / run.name, run)
        log = (tmp_path / "digits_pixel" / run.name / "train.log").read_text()
        assert log.count("finished; go on with") == 1 and log.count("continues from step") == 1
    assert {facts["attempts"] for facts in records(tmp_path).values()} == {2}


@pytest.mark.slow
def test_trials_of_joblib_save_when_their_driver_is_stopped_or_killed(quiet, tmp_path):
    words = [f"runs_dir={tmp_path}", "seed=0,1", "trainer.max_steps=60"]
    command = [sys.executable, "train.py", "-m", *TRIAL, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    start = partial(subprocess.Popen, command, cwd=CONF.parent, stderr=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGKILL):
        driver = start()
        wait_until(lambda: "running" in statuses(tmp_path) and len(steps(tmp_path)) > 1)
        driver.send_signal(number)
        assert driver.wait(60) == (75 if number == signal.SIGTERM else -number)
        # One that was still importing is ended by the signal, and its record says running: the locks know.
        wait_until(lambda: not any(held(lock) for lock in tmp_path.glob("sweeps/*/trials/*.lock")))
    assert start().wait(300) == 0
    runs = list((tmp_path / "digits_pixel").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert_same_run(run, quiet / "digits_pixel" / run.name)
