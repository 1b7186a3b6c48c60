"""A run that was killed ends as if it had not been: equal to the bit (CPU, float32).

KILLS and KILL_SEED in the environment set how often and at which moments it is killed.
"""

import os
import random
import signal
from pathlib import Path

import pytest

from diffusion.callbacks.metrics_csv import read_rows
from tests.training import assert_same_run, start_training

PLAN = [
    "trainer.max_steps=500",
    "trainer.validate_every_n_steps=100",
    "trainer.log_every_n_steps=3",
    "checkpoint.every_n_steps=10",
    "callbacks.previews.every_n_steps=200",
]
KILLS = int(os.environ.get("KILLS", "20"))
KILL_SEED = int(os.environ.get("KILL_SEED", "0"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    runs_dir = tmp_path_factory.mktemp("reference")
    process = start_training(runs_dir, *PLAN)
    process.join()
    assert process.exitcode == 0
    return runs_dir / "digits_pixel" / "run"


@pytest.mark.slow
def test_killed_run_equals_the_uninterrupted_one(reference, tmp_path):
    """Killed at its first step, in the middle of checkpoints, and at random moments of its training."""
    rng = random.Random(KILL_SEED)
    # Within half a second of a step lie its checkpoint, its validation and the figures that follow.
    moments = [(1, 0.0), "checkpoint", *((rng.randint(1, 14), rng.uniform(0, 0.5)) for _ in range(KILLS - 5))]
    moments += ["checkpoint", (1, 0.0), "checkpoint"]
    reached = []
    for moment in moments:
        process = start_training(tmp_path, *PLAN, kill=moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
        rows = read_rows(tmp_path / "digits_pixel" / "run" / "metrics.csv")
        reached.append(int(rows[-1]["step"]) if rows else 0)
    assert len(set(reached)) >= 3, "the kills came at the same steps"
    final = start_training(tmp_path, *PLAN)
    final.join()
    assert final.exitcode == 0
    assert_same_run(tmp_path / "digits_pixel" / "run", reference)
