"""Evaluation while a model trains: what is logged, which checkpoint is kept, and the end that copies bring."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion.callbacks.metrics_csv import read_rows
from diffusion.errors import UserError
from diffusion.metrics.copies import CopyDetector
from diffusion.runs import Run
from tests.commands import diffusion
from tests.training import assert_same_run, losses, run_training, start_training

EVERY_TWO = [
    "extractor=random",
    "callbacks.evaluation.every_n_steps=2",
    "callbacks.evaluation.n=40",
    "trainer.validate_every_n_steps=2",
    "checkpoint.every_n_steps=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_training(tmp_path_factory.mktemp("runs"), *EVERY_TWO, "trainer.max_steps=4")


@pytest.mark.slow
def test_figures_are_logged_and_the_best_checkpoint_kept(run, tmp_path):
    rows = [row for row in read_rows(run / "metrics.csv") if row["eval/kid"]]
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(0 <= float(row["eval/copies"]) <= 1 and float(row["eval/recall"]) >= 0 for row in rows)
    best = min(rows, key=lambda row: float(row["eval/kid"]))
    assert Run.open(run, checkpoint="best_kid").position() == int(best["step"])
    words = [f"run={run}", "checkpoint=best_kid", "extractor=random", "n=40", "device=cpu"]
    diffusion("evaluate", *words, f"out={tmp_path / 'out'}", f"cache={tmp_path}")
    receipt = json.loads((tmp_path / "out" / "metrics.json").read_text())["receipt"]
    assert receipt["generated"]["step"] == int(best["step"])


@pytest.mark.slow
def test_it_is_what_evaluate_says_of_the_same_images(run, tmp_path):
    """The last figures, against those of `sample`'s images in the same features, from scratch."""
    from datamodules.digits import Digits
    from diffusion.extractors import Random, extract
    from diffusion.metrics.kernel import kernel_estimate

    diffusion("sample", f"run={run}", "n=40", f"out={tmp_path / 'sample'}", "device=cpu")
    images = torch.from_numpy(np.load(tmp_path / "sample" / "samples.npz")["images"]).movedim(-1, 1)
    extractor = Random(Digits(), tmp_path)
    features = [extract(extractor, x).values for x in (images, Digits().split("val").images)]
    last = [row for row in read_rows(run / "metrics.csv") if row["eval/kid"]][-1]
    assert float(last["eval/kid"]) == pytest.approx(kernel_estimate(*features).value, rel=1e-4)


@pytest.mark.slow
def test_copies_end_the_run(tmp_path, monkeypatch, caplog):
    def all_flagged(self: CopyDetector, images: torch.Tensor, features: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(flagged=np.ones(len(images), bool))

    monkeypatch.setattr(CopyDetector, "__call__", all_flagged)
    plan = [*EVERY_TWO, "callbacks.evaluation.max_copies=0.5", "trainer.max_steps=50"]
    with caplog.at_level(logging.INFO):
        run = run_training(tmp_path, *plan)
        assert "step 2: 100.0% of the samples are copies of training images (limit 50.0%)" in caplog.text
        assert Run.open(run).position() == 2
        before = losses(run)
        run_training(tmp_path, *plan)
    assert "was ended by its evaluation" in caplog.text
    assert losses(run) == before


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been(run, tmp_path):
    plan = [*EVERY_TWO, "trainer.max_steps=4"]
    process = start_training(tmp_path, *plan, kill=(4, 0.0))
    process.join(120)
    again = run_training(tmp_path, *plan)
    assert_same_run(again, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("every_n_steps=0", "callbacks.evaluation.every_n_steps=0"),
        ("n=0", "callbacks.evaluation.n=0"),
        ("max_copies=2", "callbacks.evaluation.max_copies=2"),
        ("every_n_steps=often", "callbacks.evaluation.every_n_steps=often"),
    ],
)
def test_values_out_of_range_are_refused(value, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run_training(tmp_path, *EVERY_TWO, "trainer.max_steps=2", f"callbacks.evaluation.{value}")
