"""What `python -m diffusion` inpaint, translate and restore write, of runs in pixels and in latents, and refuse."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.digits import Digits
from diffusion.apps import tasks
from diffusion.extractors import domain
from diffusion.operators import SuperResolution
from diffusion.tasks.reconstruct import evenly_spaced
from tests.apps.test_sample import lively
from tests.commands import diffusion, refusal
from tests.training import AUTOENCODER, SMALL, run_training

pytestmark = pytest.mark.slow

STEPS = ["trainer.max_steps=2", "trainer.log_every_n_steps=1"]
MASKS = ["center", "half", "random", "file"]
SHORT = ["n=4", "grid.steps=3", "device=cpu"]


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Path:
    return lively(run_training(tmp_path_factory.mktemp("pixel"), *STEPS))


@pytest.fixture(scope="module")
def latent(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("latent")
    autoencoder = run_training(folder, *STEPS, base=AUTOENCODER)
    return lively(run_training(folder, *STEPS, f"codec.run={autoencoder}", base=[*SMALL, "experiment=digits_latent"]))


@pytest.fixture(params=["pixel", "latent"])
def run(request) -> Path:
    return request.getfixturevalue(request.param)


def originals(n: int = 4) -> torch.Tensor:
    """The images that a task takes, (n, 8, 8, 1)."""
    test = Digits().split("test")
    return test.images[evenly_spaced(len(test), n)].movedim(1, -1)


def written(task: str, run: Path, out: Path, *words: str) -> tuple[dict, list[dict[str, str]], dict[str, np.ndarray]]:
    tasks.main([task, f"run={run}", f"out={out}", *SHORT, *words])
    with (out / "cases.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert (out / f"{task}.png").stat().st_size > 5_000
    return json.loads((out / "metrics.json").read_text()), cases, dict(np.load(out / "samples.npz"))


@pytest.mark.parametrize(("run", "mask"), [*(("pixel", m) for m in MASKS), ("latent", "center")], indirect=["run"])
def test_known_pixels_are_kept_to_the_bit(run, mask, tmp_path):
    if mask == "file":
        picture = np.zeros((8, 8), np.uint8)
        picture[2:5, 1:7] = 255
        Image.fromarray(picture).save(tmp_path / "mask.png")
        mask = tmp_path / "mask.png"
    metrics, cases, arrays = written("inpaint", run, tmp_path / "out", f"mask={mask}", "samples=2", "resample=2")
    known, images = ~arrays["unknown"], arrays["images"]
    assert images.shape == (8, 8, 8, 1) and images.dtype == np.uint8 and 0 < known.mean() < 1
    real = originals().repeat_interleave(2, 0).numpy()
    assert np.array_equal(images[known], real[known]) and not np.array_equal(images, real)
    error = np.abs(images.astype(float) - real)[..., 0] / 255
    mae = [error[i][arrays["unknown"][i]].mean() for i in range(8)]
    assert metrics["completions"]["mae"]["value"] == pytest.approx(np.mean(mae), rel=1e-6)
    assert [int(case["index"]) for case in cases] == arrays["index"][::2].tolist()
    assert float(cases[0]["completions_mae"]) == pytest.approx(np.mean(mae[:2]), rel=1e-4)


def test_an_image_is_completed_alike_whatever_the_batch_and_number(pixel, tmp_path):
    words = ["mask=random", "samples=1", "resample=2"]
    whole = written("inpaint", pixel, tmp_path / "a", *words)[2]
    parts = written("inpaint", pixel, tmp_path / "b", *words, "batch_size=3")[2]
    more = written("inpaint", pixel, tmp_path / "c", *words, "n=12")[2]
    assert np.abs(whole["images"].astype(int) - parts["images"]).max() <= 1
    places, here, there = np.intersect1d(whole["index"], more["index"], return_indices=True)
    assert len(places) == 2 and np.array_equal(whole["unknown"][here], more["unknown"][there])
    assert np.abs(whole["images"][here].astype(int) - more["images"][there]).max() <= 1
    assert (
        written("inpaint", pixel, tmp_path / "d", *words, "seed=1")[2]["unknown"].tolist() != whole["unknown"].tolist()
    )


def test_translation_moves_further_the_stronger_it_is(run, tmp_path):
    words = ["strength=[0.05,0.5,1]", "classifier=false", "grid.steps=12"]
    metrics, cases, arrays = written("translate", run, tmp_path / "out", *words)
    assert arrays["images"].shape == (12, 8, 8, 1) and arrays["strength"].tolist() == [0.05, 0.5, 1] * 4
    labels = Digits().split("test").labels[torch.from_numpy(arrays["index"])]
    assert arrays["labels"].tolist() == ((labels + 1) % 10).tolist()
    found = [metrics["strengths"][name]["psnr"]["value"] for name in ("0.05", "0.5", "1")]
    # What an autoencoder of two steps decodes is as far off at any strength.
    assert (found[0] > found[1] or "latent" in str(run)) and "reached" in metrics["left_out"]
    assert float(cases[0]["psnr_0.05"]) > 0 and len(cases) == 4


def test_translation_to_its_own_class_or_another(pixel, tmp_path):
    words = ["strength=0.5", "classifier=false"]
    own = written("translate", pixel, tmp_path / "own", *words, "label=own")[2]
    assert own["labels"].tolist() == Digits().split("test").labels[torch.from_numpy(own["index"])].tolist()
    three = written("translate", pixel, tmp_path / "three", *words, "label=3", "n=null", "split=val")[2]["labels"]
    assert len(three) == len(Digits().split("val")) and (three == 3).all()


def test_a_classifier_says_whether_the_class_is_reached(pixel, tmp_path, monkeypatch):
    monkeypatch.setitem(domain.STEPS, 2, 20)
    metrics, cases, _ = written("translate", pixel, tmp_path / "out", "strength=0.5", f"cache={tmp_path / 'cache'}")
    share = np.mean([float(case["reached_0.5"]) for case in cases])
    assert metrics["strengths"]["0.5"]["reached"]["value"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("run", "operator"),
    [*(("pixel", name) for name in ("super_resolution", "blur", "inpainting", "fourier")), ("latent", "blur")],
    indirect=["run"],
)
def test_restoration_is_judged_beside_what_was_measured(run, operator, tmp_path):
    words = [f"operator={operator}", "samples=2", *(["operator.factor=2"] if operator == "super_resolution" else [])]
    metrics, cases, arrays = written("restore", run, tmp_path / "out", *words)
    assert arrays["images"].shape == (8, 8, 8, 1) and list(arrays["measured"].shape[1:]) == metrics["measured"]
    if operator == "super_resolution":
        x = originals().movedim(-1, 1).float() / 127.5 - 1
        noise = torch.from_numpy(arrays["measured"]) - SuperResolution(2)(x)
        assert noise.std().item() == pytest.approx(metrics["noise"], rel=0.4)
        assert metrics["nearest"]["residual"]["value"] < 1e-6
        assert metrics["bicubic"]["psnr"]["value"] > 10
    lost = metrics["assumed_noise"] / metrics["noise"]  # an autoencoder of two steps loses nearly all
    assert (lost > 3 if "latent" in str(run) else 1 < lost < 1.02) and len(cases) == 4


MISTAKES = [
    ("inpaint", "mask=middle", "mask=middle"),
    ("inpaint", "share=1", "share=1"),
    ("inpaint", "resample=0", "resample=0"),
    ("inpaint", "stride=0", "stride=0"),
    ("inpaint", "samples=0", "samples=0"),
    ("inpaint", "n=0", "n=0"),
    ("inpaint", "split=all", "split=all"),
    ("inpaint", "label=12", "the classes of this run are 0 to 9"),
    ("translate", "strength=0", "strength=0"),
    ("translate", "strength=[0.5,1.5]", "strength=1.5"),
    ("translate", "strength=[0.5,0.5]", "several different ones"),
    ("translate", "strength=[]", "give a number"),
    ("translate", "label=ten", "give a class index"),
    ("restore", "operator=zoom", "operator=zoom: there is no such choice"),
    ("restore", "operator.factor=1", "factor=1"),
    ("restore", "operator.factor=16", "side of 8"),
    ("restore", "operator=colour", "one channel"),
    ("restore", "noise=-1", "noise=-1"),
    ("restore", "iterations=0", "iterations=0"),
    ("restore", "operator.width=1", "operator.width: there is no such key"),
]


@pytest.mark.parametrize(("task", "word", "said"), MISTAKES)
def test_a_mistake_is_one_line(pixel, tmp_path, capfd, task, word, said):
    words = [word, *(["operator=super_resolution"] if "factor" in word else [])]
    assert said in refusal(capfd, diffusion, task, f"run={pixel}", f"out={tmp_path / 'out'}", "device=cpu", *words)
    assert not (tmp_path / "out").exists()


def test_a_mask_that_does_not_fit_is_one_line(pixel, tmp_path, capfd):
    for name, values in {"large": np.zeros((9, 8)), "none": np.zeros((8, 8)), "all": np.full((8, 8), 255)}.items():
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / f"{name}.png")
    np.save(tmp_path / "volume.npy", np.ones((8, 8, 8)))
    np.save(tmp_path / "half.npy", np.full((8, 8), 0.5))
    (tmp_path / "text.png").write_text("no picture")
    said = {"large.png": "9 x 8", "none.png": "hides nothing", "all.png": "hides all", "volume.npy": "8 x 8 x 8"}
    said |= {"half.npy": "other values than 0"}
    for file, line in (said | {"text.png": "cannot be read", "missing.png": "which this is not"}).items():
        words = [f"run={pixel}", f"out={tmp_path / 'out'}", f"mask={tmp_path / file}"]
        assert line in refusal(capfd, diffusion, "inpaint", *words)
    assert not (tmp_path / "out").exists()
