"""Sweeps and runs on a real Slurm of one node, whose jobs are killed, requeued, preempted and out of time."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from diffusion.apps.config import CONF
from tests import slurm
from tests.training import SMALL, assert_same_run, state

reason = slurm.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=str(reason))]

HARM = int(os.environ.get("CHAOS", "4"))
"""How often a job is harmed; CHAOS=30 does what docs/measured.md tells of."""
TRIAL = [
    *SMALL,
    "trainer.validate_every_n_steps=40",
    "trainer.log_every_n_steps=10",
    "checkpoint.every_n_steps=10",
    "callbacks.previews.every_n_steps=1000",
    "callbacks.learning_rate.final=1",
]
SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=20",
    "hydra.launcher.poll_seconds=0.5",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.cluster(tmp_path_factory.mktemp("slurm")):
        yield


def sweep(folder: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", "-m", *TRIAL, f"runs_dir={folder}", *words]
    return subprocess.Popen(command, cwd=CONF.parent, stderr=subprocess.PIPE, text=True)


def harm(kind: str, job: str) -> None:
    """Kill the processes of a job, send it back, take its place, or tell it that its time is up."""
    if kind == "kill":
        for line in slurm.said("scontrol", "listpids", job).splitlines()[1:]:
            with suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)
    elif kind == "requeue":
        slurm.said("scontrol", "requeue", job)
    elif kind == "preempt":
        slurm.said("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1")
    else:
        slurm.said("scancel", "--signal=USR1", job)


def test_a_sweep_whose_jobs_are_harmed_ends_as_if_nothing_had_been(cluster, tmp_path, capfd):
    """In the middle the command itself is killed, and given again while its jobs go on."""
    seeds = "0,1,2" if HARM > 10 else "0"
    words = ["scheduler=edm,cosine", f"seed={seeds}", "trainer.max_steps=120"]
    quiet = sweep(tmp_path / "quiet", *words)
    assert quiet.wait(600) == 0, quiet.stderr.read()
    harmed = [tmp_path / "harmed", *words, *SLURM, "hydra.launcher.retries=1000"]
    chance, done, counts = random.Random(0), 0, {}
    driver = sweep(*harmed)
    while driver.poll() is None:
        time.sleep(chance.uniform(1, 12) if done < HARM else 0.5)
        slurm.at_once()
        running = slurm.jobs("RUNNING")
        if done < HARM and running:
            kind = chance.choice(["kill", "requeue", "preempt", "time"])
            harm(kind, chance.choice(running))
            counts[kind] = counts.get(kind, 0) + 1
            done += 1
            if done == HARM // 2:
                driver.kill()
                driver.wait()
                driver = sweep(*harmed)
    said = driver.stderr.read()
    with capfd.disabled():
        print(f"\nharm: {counts}")
    assert driver.returncode == 0, said
    assert "trials are in the queue already" in said
    assert done == HARM
    runs = sorted((tmp_path / "quiet" / "digits_pixel").iterdir())
    assert len(runs) == (6 if HARM > 10 else 2)
    for run in runs:
        found = tmp_path / "harmed" / "digits_pixel" / run.name
        assert_same_run(found, run)
        assert (found / "train.log").read_text().count("finished; go on with") == 1
    attempts = [json.loads(path.read_text())["attempts"] for path in tmp_path.glob("harmed/sweeps/*/trials/*.json")]
    assert len(attempts) == len(runs) and sum(attempts) > len(runs)


def test_a_cancelled_trial_stays_cancelled(cluster, tmp_path):
    driver = sweep(tmp_path, "seed=0,1", "trainer.max_steps=100000", *SLURM)
    wait_until(lambda: len(list(tmp_path.glob("digits_pixel/*/metrics.csv"))) == 2)
    for job in slurm.jobs("RUNNING"):
        slurm.said("scancel", job)
    assert driver.wait(60) == 75
    assert "2 of 2 trials were stopped: the same command goes on" in driver.stderr.read()
    assert not slurm.jobs("PENDING", "RUNNING")
    assert len(list(tmp_path.glob("digits_pixel/*/checkpoints/last.ckpt"))) == 2


def test_a_job_of_two_processes_goes_back_when_its_time_is_up_and_is_the_same_run(cluster, tmp_path):
    """The batch script of docs/sweeps.md, on two CPU processes."""
    words = [*TRIAL, "network.dropout=0", "trainer.max_steps=60", "accelerator=slurm"]
    words += ["accelerator.accelerator=cpu", "accelerator.precision=32-true", f"runs_dir={tmp_path}/job"]
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n"
        "#SBATCH --ntasks-per-node=2 --time=10 --signal=USR1@120 --requeue --open-mode=append\n"
        f"#SBATCH --output={tmp_path}/job.log\n"
        f"srun {sys.executable} train.py {' '.join(words)}\n"
    )
    job = subprocess.run(
        ["sbatch", "--parsable", script], cwd=CONF.parent, capture_output=True, text=True
    ).stdout.strip()
    run = tmp_path / "job" / "digits_pixel" / f"job-{job}"
    wait_until(lambda: (run / "metrics.csv").exists())
    harm("time", job)
    wait_until(lambda: slurm.jobs("PENDING") == [job])
    assert "stopped by SIGUSR1 at step" in (run / "train.log").read_text()
    slurm.at_once()
    wait_until(lambda: not slurm.jobs("PENDING", "RUNNING", "COMPLETING"))
    assert "Restarts=1" in slurm.said("scontrol", "show", "job", job), (tmp_path / "job.log").read_text()
    log = (run / "train.log").read_text()
    assert log.count("continues from step") == 1 and log.count("finished; go on with") == 1
    assert [path.name for path in run.parent.iterdir()] == [run.name] and not list(run.rglob("hpc_ckpt*"))
    assert state(run)["step"] == 60


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
