"""python -m diffusion tune_grid: a grid is measured, kept with the run, and used by the other tasks."""

import csv
import json
from pathlib import Path

import pytest

from tests.commands import diffusion, refusal
from tests.training import run_training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_training(tmp_path_factory.mktemp("run"), "trainer.max_steps=2")


def test_a_tuned_grid_is_used(run, capfd, caplog, tmp_path):
    said = refusal(capfd, diffusion, "sample", f"run={run}", "grid=optimised", "grid.steps=3")
    assert f"tune_grid run={run} sampler=dpmpp_2m steps=3" in said and "none yet" in said

    words = [f"run={run}", "steps=3", "n=6", "device=cpu"]
    diffusion("tune_grid", *words)
    found = json.loads((run / "grids" / "dpmpp_2m_3.json").read_text())
    out = run / "tune_grid" / "dpmpp_2m_3"
    assert found == json.loads((out / "metrics.json").read_text())
    assert found["levels"] == sorted(found["levels"]) and len(found["levels"]) == 3
    assert found["error"] <= found["error_of_own_grid"]
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {"optimised", "own"} < set(rows[0])
    assert (out / "grid.png").stat().st_size > 5000

    diffusion("sample", f"run={run}", f"out={tmp_path / 'a'}", "n=4", "grid=optimised", "grid.steps=3")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["steps"] == 3 and metrics["evaluations_per_image"] >= 3
    assert "another guidance" not in caplog.text
    words_of = [f"run={run}", f"out={tmp_path / 'b'}", "n=4", "grid=optimised", "grid.steps=3", "guidance=none"]
    diffusion("sample", *words_of)
    assert "another guidance" in caplog.text

    assert "overwrite=true" in refusal(capfd, diffusion, "tune_grid", *words)
    assert "dpmpp_2m_3" in refusal(capfd, diffusion, "sample", f"run={run}", "grid=optimised", "sampler=heun")
    assert "noise" in refusal(capfd, diffusion, "tune_grid", *words, "sampler=ddpm")
    (run / "grids" / "dpmpp_2m_3.json").write_text("{")
    assert "damaged" in refusal(capfd, diffusion, "sample", f"run={run}", "grid=optimised", "grid.steps=3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grid=optimised"], "tune_grid"),
        (["sampler=ddim", "sampler.eta=3"], "sampler.eta=3"),
        (["sampler=ddpm", "sampler.variance=7"], "sampler.variance=7"),
        (["sampler=heun", "sampler.churn=-1"], "sampler.churn=-1"),
        (["sampler=unipc", "sampler.order=5"], "sampler.order=5"),
        (["grid=karras", "grid.sigma_min=90", "grid.sigma_max=100"], "grid.sigma_min=90"),
    ],
)
def test_what_sampler_and_grid_refuse_is_refused_before_training(words, said, tmp_path, capfd):
    from tests.commands import train_py

    line = refusal(capfd, train_py, "experiment=digits_pixel", f"runs_dir={tmp_path}", "trainer.max_steps=2", *words)
    assert said in line and not list(tmp_path.rglob("config.yaml"))
