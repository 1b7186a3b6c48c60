"""What `python -m diffusion likelihood` writes."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusion.apps import tasks
from tests.apps.test_sample import lively
from tests.commands import diffusion, refusal
from tests.training import run_training

pytestmark = pytest.mark.slow

HYBRID = ["objective=edm_hybrid", "trainer.log_every_n_steps=20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return lively(run_training(tmp_path_factory.mktemp("run"), "trainer.max_steps=2", *HYBRID))


def likelihood(run: Path, out: Path, *words: str) -> tuple[dict, list[dict[str, str]]]:
    tasks.main(["likelihood", f"run={run}", f"out={out}", "grid.steps=6", "device=cpu", *words])
    with (out / "cases.csv").open() as file:
        return json.loads((out / "metrics.json").read_text()), list(csv.DictReader(file))


def test_files_and_figures_agree(run, tmp_path):
    metrics, cases = likelihood(run, tmp_path / "a", "n=6", "tolerance=0.05")
    assert len(cases) == metrics["n"] == 6
    for name in ("bound", "flow", "prior", "steps", "decoder"):
        values = torch.tensor([float(case[name]) for case in cases], dtype=torch.float64)
        assert metrics[name]["mean"] == pytest.approx(values.mean().item(), rel=1e-4)
        assert metrics[name]["standard_error"] == pytest.approx(values.std().item() / 6**0.5, rel=1e-3)
    parts = sum(metrics[name]["mean"] for name in ("prior", "steps", "decoder"))
    assert metrics["bound"]["mean"] == pytest.approx(parts, rel=1e-6)
    with (tmp_path / "a" / "curve.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert len(curve) == 5 and metrics["evaluations"]["bound"] == 6 and metrics["evaluations"]["flow"] > 6
    assert sum(float(row["bits"]) for row in curve) == pytest.approx(metrics["steps"]["mean"], rel=1e-4)
    assert metrics["variance"] == "learned"
    assert (tmp_path / "a" / "likelihood.png").stat().st_size > 10_000


def test_an_image_has_its_bits_whatever_the_batch(run, tmp_path):
    words = ["n=6", "flow=false"]
    whole, split = (likelihood(run, tmp_path / str(size), *words, f"batch_size={size}")[1] for size in (6, 4))
    for a, b in zip(whole, split, strict=True):
        assert a["index"] == b["index"] and float(a["bound"]) == pytest.approx(float(b["bound"]), rel=1e-4)
    other = likelihood(run, tmp_path / "seed", *words, "seed=1")[1]
    assert other[0]["bound"] != whole[0]["bound"]


def test_the_variance_of_the_steps_can_be_fixed(run, tmp_path):
    found = {v: likelihood(run, tmp_path / v, "n=6", "flow=false", f"variance={v}")[0] for v in ("null", "0", "1")}
    assert len({metrics["steps"]["mean"] for metrics in found.values()}) == 3
    assert [metrics["variance"] for metrics in found.values()] == ["learned", 0, 1]


def test_training_lowers_it_and_the_learned_covariance_too(tmp_path):
    """On digits: fewer bits after more steps, and in a short grid fewer with the learned variance than with others."""
    bits = []
    for steps in (30, 90, 240):
        run = run_training(tmp_path, *HYBRID, f"trainer.max_steps={steps}", "optimizer.lr=3e-3", "batch_size=64")
        out = tmp_path / str(steps)
        bits.append(likelihood(run, out, "n=64", "flow=false", "grid.steps=30")[0]["bound"]["mean"])
    assert bits[0] > bits[1] > bits[2]
    for variance in (0, 1):
        words = ["n=64", "flow=false", "grid.steps=30", f"variance={variance}"]
        assert likelihood(run, tmp_path / f"fixed{variance}", *words)[0]["bound"]["mean"] > bits[2] + 0.1


def test_weights_of_another_version_are_one_line(run, tmp_path, capfd):
    older = Path(shutil.copytree(run, tmp_path / "older"))
    path = older / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["ema"] = {name.removeprefix("network."): value for name, value in content["ema"].items()}
    torch.save(content, path)
    assert "another version" in refusal(capfd, diffusion, "likelihood", f"run={older}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n=0"], "n=0"),
        (["variance=2"], "variance=2"),
        (["variance=small"], "variance=small"),
        (["split=all"], "split=all"),
        (["tolerance=0"], "tolerance=0"),
        (["grid.steps=1"], "2 steps"),
        (["sampler=ddpm"], "sampler"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, capfd, words, said):
    assert said in refusal(capfd, diffusion, "likelihood", f"run={run}", f"out={tmp_path / 'out'}", *words)
    assert not (tmp_path / "out").exists()
