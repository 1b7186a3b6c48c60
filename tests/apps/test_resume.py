"""A run that was killed ends as if it had not been: equal to the bit (CPU, float32)."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.training import assert_same_run, start_training

PLAN = [
    "trainer.max_steps=150",
    "trainer.validate_every_n_steps=20",
    "trainer.log_every_n_steps=3",
    "checkpoint.every_n_steps=10",
    "callbacks.previews.every_n_steps=40",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Path, float]:
    """An uninterrupted run, and the seconds that it took."""
    start = time.monotonic()
    process = start_training(tmp_path_factory.mktemp("reference"), *PLAN)
    process.join()
    assert process.exitcode == 0
    return next(tmp_path_factory.getbasetemp().glob("reference*/digits_pixel/run")), time.monotonic() - start


def kill_often(runs_dir: Path, seconds: float, kills: int, seed: int) -> int:
    """Kill the same command until it was killed `kills` times, then let it end; how often it died in training."""
    rng = random.Random(seed)
    died = 0
    for kind in ["first step", *rng.choices(["checkpoint", "random", "random", "random"], k=kills - 1)]:
        process = start_training(runs_dir, *PLAN, kill=None if kind == "random" else kind)
        process.join(rng.uniform(0, seconds / 3) if kind == "random" else None)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        died += process.exitcode == -signal.SIGKILL
    final = start_training(runs_dir, *PLAN)
    final.join()
    assert final.exitcode == 0
    return died


@pytest.mark.slow
def test_killed_run_equals_the_uninterrupted_one(reference, tmp_path):
    run, seconds = reference
    died = kill_often(
        tmp_path, seconds, kills=int(os.environ.get("KILLS", "6")), seed=int(os.environ.get("KILL_SEED", "0"))
    )
    assert died >= 2
    assert_same_run(tmp_path / "digits_pixel" / "run", run)
