"""`segment` from end to end: a segmenter and a diffusion model of masks learn shapes whose masks are known."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusion.metrics.segmentation import hausdorff95
from diffusion.runs import Run
from tests.commands import diffusion, refusal, train_py
from tests.datamodules.pictures import save
from tests.training import SMALL, assert_same_run, run_training

pytestmark = pytest.mark.slow

SHORT = ["accelerator=cpu", "trainer.max_time=null", "trainer.max_steps=2", "trainer.log_every_n_steps=1"]
NET = ["network=tiny", "network.channels=8", "batch_size=16"]
COUNT, SIDE = 40, 16


def shapes(folder, count=COUNT):
    """Noisy pictures of a disc of class 2 in a square of class 1, and their masks."""
    y, x = np.mgrid[:SIDE, :SIDE]
    for i in range(count):
        rng = np.random.default_rng(i)
        (cy, cx), half = rng.uniform(6, 10, 2), rng.integers(4, 6)
        mask = (np.maximum(abs(y - cy), abs(x - cx)) < half).astype(np.uint8)
        mask[(y - cy) ** 2 + (x - cx) ** 2 < (half - 2) ** 2] = 2
        grey = np.array([60, 120, 180])[mask] + rng.normal(0, 10, mask.shape)
        save(folder / "images" / f"{i:02d}.png", grey.clip(0, 255).astype(np.uint8))
        save(folder / "masks" / f"{i:02d}.png", 100 * mask)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment")
    shapes(folder / "data")
    data = [f"dataset.path={folder / 'data'}", f"dataset.cache={folder / 'cache'}", f"dataset.size={SIDE}"]
    base = ["experiment=wbc_segmenter", *SHORT, *NET, *data]
    run = run_training(folder, "trainer.max_steps=40", "trainer.log_every_n_steps=20", base=base)
    return SimpleNamespace(folder=folder, data=data, base=base, run=run)


def segment(run, out, *words):
    diffusion("segment", f"run={run}", f"out={out}", "device=cpu", *words)
    with np.load(out / "masks.npz") as arrays, (out / "cases.csv").open(newline="") as file:
        return json.loads((out / "metrics.json").read_text()), list(csv.DictReader(file)), dict(arrays)


def test_the_figures_are_those_of_the_masks_that_are_written(made, tmp_path):
    metrics, cases, masks = segment(made.run, tmp_path / "out", "split=train", "shown=2", "batch_size=7")
    n, truth = metrics["n"], masks["truth"]
    assert n == 32 and truth.shape == masks["masks"].shape == masks["uncertainty"].shape == (n, SIDE, SIDE)
    assert masks["probabilities"].shape == (n, SIDE, SIDE, 3) and metrics["samples"] == 1
    assert [(int(row["index"]), row["class"]) for row in cases] == [(i, k) for i in range(n) for k in "12"]
    for row in cases:
        mask = np.asarray(Image.open(made.folder / "data" / row["name"].replace("images", "masks")))
        a, b = (each[int(row["index"])] == int(row["class"]) for each in (masks["masks"], truth))
        assert np.array_equal(b, mask == 100 * int(row["class"]))
        assert float(row["dice"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), rel=1e-5)
        assert float(row["hd95"]) == pytest.approx(hausdorff95(a, b), nan_ok=True, rel=1e-5)
        assert (int(row["truth_pixels"]), int(row["found_pixels"])) == (b.sum(), a.sum())
    for k in "12":
        dice = [float(row["dice"]) for row in cases if row["class"] == k]
        assert metrics["classes"][k]["dice"]["value"] == pytest.approx(np.mean(dice), abs=1e-5)
    wrong = masks["masks"] != truth
    assert metrics["wrong_pixels"] == pytest.approx(wrong.mean())
    # The area by its definition: of a wrong and a right pixel the wrong one is the less certain, ties half.
    p = masks["probabilities"].astype(np.float64).clip(1e-12)
    u = -(p * np.log(p)).sum(-1) / np.log(3)
    assert np.allclose(u, masks["uncertainty"], atol=5e-3)
    pairs = u[wrong][:: max(1, wrong.sum() // 400), None] - u[~wrong][None, :: max(1, (~wrong).sum() // 400)]
    area = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert metrics["uncertainty_auroc"]["value"] == pytest.approx(area, abs=0.05)
    for name in ("segmentations.png", "reliability.png"):
        assert Image.open(tmp_path / "out" / name).width > 500


def test_pictures_without_masks(made, tmp_path):
    """The pictures of the test split, given as a folder, get the masks that they get as that split."""
    metrics, cases, masks = segment(made.run, tmp_path / "test")
    names = sorted({row["name"] for row in cases})
    for name in names:
        save(tmp_path / "pictures" / "some" / name, np.asarray(Image.open(made.folder / "data" / name)))
    found, rows, free = segment(made.run, tmp_path / "free", f"images={tmp_path / 'pictures'}")
    assert (found["n"], len(rows), "classes" in found) == (metrics["n"], 2 * metrics["n"], False)
    assert free["names"].tolist() == [f"some/{name}" for name in names]
    assert np.array_equal(free["masks"], masks["masks"])
    for name, mask in zip(free["names"], free["masks"], strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "free" / "masks" / name)), np.array([0, 127, 255])[mask])
    assert (tmp_path / "free" / "segmentations.png").is_file()


def test_mistakes_are_told_in_one_line(made, capfd, tmp_path):
    def said(*words, run=made.run):
        return refusal(capfd, diffusion, "segment", f"run={run}", f"out={tmp_path / 'out'}", "device=cpu", *words)

    pixels = run_training(tmp_path, *SHORT, base=SMALL)
    assert "finds no masks: train one with model=segmenter" in said(run=pixels)
    assert "split=all: give train, val or test" in said("split=all")
    assert "samples=0" in said("samples=0") and "shown=0" in said("shown=0")
    assert "nowhere" in said("images=nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in said(f"images={tmp_path / 'empty'}")
    other = shapes(tmp_path / "other", 12)
    for mask in (other / "masks").iterdir():
        save(mask, np.minimum(np.asarray(Image.open(mask)), 100))
    assert "has 2 classes of masks, but the run finds 3" in said(f"dataset.path={other}")
    assert not (tmp_path / "out").exists()
    assert "finds masks and makes no images: use `python -m diffusion segment`" in refusal(
        capfd, diffusion, "sample", f"run={made.run}", f"out={tmp_path / 'out'}", "device=cpu"
    )
    words = [*SHORT, *NET, f"runs_dir={tmp_path}"]
    line = refusal(capfd, train_py, "experiment=wbc_segmenter", "dataset=digits", *words)
    assert "the data have no masks" in line
    line = refusal(capfd, train_py, *made.base, "objective=simple", f"runs_dir={tmp_path}")
    assert "this model has no objective" in line


def test_the_pages_of_a_segmenter(made):
    assert (made.run / "figures" / "loss.png").is_file()
    assert (made.run / "samples" / "step_0000040.png").is_file()
    diffusion("report", f"run={made.run}", "device=cpu", *made.data[1:2])
    page = (made.run / "report.html").read_text()
    assert "validation Dice" in page and "Segmenter" in page and "autoencoder" not in page


def test_a_segmenter_goes_on_to_the_bit(made, tmp_path):
    """From the checkpoint of step 2, as after a kill, to the same state and losses at step 4."""
    words = ["trainer.max_steps=4", "checkpoint.every_n_steps=2", "network.dropout=0.5"]
    run = run_training(tmp_path, *words, base=made.base)
    whole = shutil.copytree(run, tmp_path / "whole")
    (run / "checkpoints" / "previous.ckpt").rename(run / "checkpoints" / "last.ckpt")
    assert Run.open(run).position() == 2
    run_training(tmp_path, *words, base=made.base)
    assert_same_run(run, whole)


def test_it_learns_the_shapes(made, tmp_path):
    run = run_training(tmp_path, "trainer.max_steps=200", "trainer.validate_every_n_steps=200", base=made.base)
    metrics, _, _ = segment(run, tmp_path / "out")
    assert metrics["classes"]["1"]["dice"]["value"] > 0.85 and metrics["classes"]["2"]["dice"]["value"] > 0.85
    assert metrics["classes"]["2"]["hd95"]["value"] < 2 and metrics["ece"] < 0.1


@pytest.fixture(scope="module")
def diffused(made):
    words = ["experiment=wbc_segmentation", *SHORT, *NET, "grid.steps=2", "callbacks.previews.n=4", *made.data]
    return run_training(made.folder, base=words)


def test_masks_are_drawn_again_and_again_whatever_the_batches(made, diffused, tmp_path):
    words = ["samples=3", "shown=2", "split=val"]
    metrics, _, whole = segment(diffused, tmp_path / "whole", *words)
    assert metrics["samples"] == 3 and set(np.unique((whole["probabilities"] * 3).round(2))) <= {0, 1, 2, 3}
    _, cases, part = segment(diffused, tmp_path / "part", *words, "n=2", "batch_size=1")
    assert np.array_equal(part["probabilities"], whole["probabilities"][part["index"]])
    assert len(cases) == 4
    _, _, other = segment(diffused, tmp_path / "other", *words, "seed=1")
    assert not np.array_equal(other["probabilities"], whole["probabilities"])


def test_a_diffusion_model_learns_the_shapes(made, tmp_path):
    words = ["experiment=wbc_segmentation", *SHORT, *NET, "callbacks.previews.n=4", *made.data]
    run = run_training(tmp_path, "trainer.max_steps=200", "trainer.validate_every_n_steps=200", base=words)
    metrics, _, _ = segment(run, tmp_path / "out", "samples=4")
    assert metrics["classes"]["1"]["dice"]["value"] > 0.75 and metrics["classes"]["2"]["dice"]["value"] > 0.75
    assert metrics["uncertainty_auroc"]["value"] > 0.75
