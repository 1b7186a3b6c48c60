"""What `python -m diffusion denoise` writes, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.digits import Digits
from diffusion.apps import tasks
from tests.apps.test_sample import lively, npz_run
from tests.commands import diffusion, refusal
from tests.datamodules.pictures import save
from tests.training import AUTOENCODER, run_training

pytestmark = pytest.mark.slow

WORDS = ["device=cpu", "grid.steps=6", "samples=2", "tuned=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return lively(run_training(tmp_path_factory.mktemp("run"), "trainer.max_steps=2"))


@pytest.fixture(scope="module")
def one_level(tmp_path_factory) -> Path:
    """The plain denoiser, on the digits of 8 x 8, with the cross-entropy."""
    words = ["dataset=digits", "objective=cross_entropy", "objective.times.level=0.3", "network.bounded=true"]
    small = ["trainer.max_steps=150", "trainer.max_time=null", "network.channels=16", "network.blocks=2"]
    folder = tmp_path_factory.mktemp("one")
    return run_training(folder, *words, *small, "accelerator=cpu", base=["experiment=mnist_denoiser"])


def denoise(run: Path, out: Path, *words: str) -> tuple[dict, list[dict[str, str]], dict[str, np.ndarray]]:
    tasks.main(["denoise", f"run={run}", f"out={out}", *WORDS, *words])
    with (out / "cases.csv").open() as file, np.load(out / "denoised.npz") as arrays:
        return json.loads((out / "metrics.json").read_text()), list(csv.DictReader(file)), dict(arrays)


def test_files_and_figures_agree(run, tmp_path):
    metrics, cases, arrays = denoise(run, tmp_path / "a", "n=3", "noise=[0.1,0.5]")
    assert metrics["n"] == 3 and len(cases) == 6 and list(metrics["levels"]) == ["0.1", "0.5"]
    originals = Digits().split("test").images
    for level, figures in metrics["levels"].items():
        rows = [i for i, case in enumerate(cases) if case["noise"] == level]
        for name in ("noisy", "tv", "nlm", "mean", "sample", "average"):
            values = [float(cases[i][f"psnr_{name}"]) for i in rows]
            assert figures[name]["psnr"]["value"] == pytest.approx(np.mean(values), rel=1e-4)
            assert "ssim" not in figures[name]  # 8 pixels are too few
        for i in rows:
            error = (
                originals[int(cases[i]["index"])][0].double() - torch.from_numpy(arrays["images"][i, ..., 0])
            ) / 255
            assert float(cases[i]["psnr_mean"]) == pytest.approx(-10 * error.square().mean().log10().item(), abs=1e-3)
        best = max(("tv", "nlm"), key=lambda name: figures[name]["psnr"]["value"])
        gain = figures["mean"]["psnr"]["value"] - figures[best]["psnr"]["value"]
        assert figures["gain"]["over"] == best and figures["gain"]["psnr"]["value"] == pytest.approx(gain)
        # Noise of s on [-1, 1] is s / 2 on [0, 1]; clipping it can only help.
        assert figures["noisy"]["psnr"]["value"] > -20 * np.log10(float(level) / 2) - 1
    assert "ssim" in metrics["left_out"] and metrics["sampler"] == "dpmpp_2m_sde"
    assert (tmp_path / "a" / "denoise.png").stat().st_size > 10_000 and (tmp_path / "a" / "psnr.png").is_file()


def test_an_image_comes_out_alike_whatever_the_batch(run, tmp_path):
    found = [denoise(run, tmp_path / str(size), "n=5", "noise=0.3", f"batch_size={size}", "baselines=false")[2]
             for size in (5, 2)]  # fmt: skip
    for name in ("images", "samples"):
        assert np.abs(found[0][name].astype(int) - found[1][name]).max() <= 1


def test_images_of_ones_own(run, tmp_path):
    """A file with originals has PSNRs, and the level of its noise is found or taken; PNGs come back as PNGs."""
    test = Digits().split("test").take(torch.arange(4))
    clean = test.images.movedim(1, -1).numpy()
    noisy = clean / 127.5 - 1 + 0.4 * np.random.default_rng(0).standard_normal(clean.shape)
    np.savez(tmp_path / "noisy.npz", images=noisy, originals=clean, labels=test.labels.numpy())
    path = f"images={tmp_path / 'noisy.npz'}"
    metrics, cases, _ = denoise(run, tmp_path / "estimated", path, "baselines=false")
    assert metrics["n"] == len(cases) == 4 and metrics["noise"]["estimated"]["mean"] > 0
    assert len({case["noise"] for case in cases}) == 4
    metrics, cases, _ = denoise(run, tmp_path / "known", path, "noise=0.4", "n=2")
    assert metrics["levels"]["given"]["noisy"]["psnr"]["value"] == pytest.approx(14, abs=2.5)
    assert [case["label"] for case in cases] == [str(test.labels[i].item()) for i in (0, 3)]

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(clean[..., 0]):
        Image.fromarray(image).save(folder / f"{i}.png")
    metrics, cases, arrays = denoise(run, tmp_path / "png", f"images={folder}", "noise=0.2", "samples=0")
    assert not metrics["levels"]["given"] and set(cases[0]) == {"index", "label", "noise"}
    assert not (tmp_path / "png" / "psnr.png").exists() and "samples" not in arrays
    back = np.asarray(Image.open(tmp_path / "png" / "images" / "2.png"))
    assert np.array_equal(back, arrays["images"][2, ..., 0])


@pytest.mark.parametrize("shape", [(12, 12, 3), (6, 12, 12, 1)], ids=["colour", "volume"])
def test_colours_and_volumes_without_classes(tmp_path, shape):
    """Where there is room for a window of 11 pixels along all axes, SSIM too."""
    metrics, _, arrays = denoise(npz_run(tmp_path, shape), tmp_path / "out", "n=2", "noise=0.3")
    assert arrays["images"].shape == (2, *shape) and arrays["spread"].shape == (2, *shape[:-1])
    assert ("ssim" in metrics["levels"]["0.3"]["mean"]) is (min(shape[:-1]) >= 11)


def test_the_plain_denoiser_of_one_level(one_level, tmp_path, capfd):
    """It denoises at its own level, better than no denoising, and makes nothing of noise."""
    metrics, _, arrays = denoise(one_level, tmp_path / "a", "n=40")
    assert metrics["noise"] == [0.3] and metrics["samples"] == 0 and "samples" not in arrays
    figures = metrics["levels"]["0.3"]
    assert figures["mean"]["psnr"]["low"] > figures["noisy"]["psnr"]["high"] and "spread" not in figures["calibration"]
    assert not (one_level / "samples").exists()
    for task in ("sample", "evaluate", "likelihood"):
        said = refusal(capfd, diffusion, task, f"run={one_level}")
        assert "makes no images from noise" in said and "diffusion denoise" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n=0"], "n=0"),
        (["noise=0"], "noise=0"),
        (["noise=[0.1,0.1]"], "noise="),
        (["noise=[]"], "noise="),
        (["noise=loud"], "noise=loud"),
        (["samples=-1"], "samples=-1"),
        (["tuned=0"], "tuned=0"),
        (["split=all"], "split=all"),
        (["sampler=heun"], "adds no noise"),
        (["images=nowhere.npz"], "does not exist"),
        (["images=.", "noise=[0.1,0.2]"], "has one level"),
        (["batch_size=0"], "batch_size=0"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, capfd, words, said):
    assert said in refusal(capfd, diffusion, "denoise", f"run={run}", f"out={tmp_path / 'out'}", *words)
    assert not (tmp_path / "out").exists()


def test_files_that_do_not_fit_are_one_line(run, tmp_path, capfd):
    rng = np.random.default_rng(0)
    cases = {
        "shape": ({"images": rng.random((2, 9, 8, 1))}, "this run is of"),
        "range": ({"images": 255 * rng.random((2, 8, 8, 1))}, r"far from [-1, 1]"),
        "type": ({"images": np.zeros((2, 8, 8, 1), np.int64)}, "int64"),
        "none": ({"pictures": np.zeros(2)}, "with `images`"),
        "pairs": ({"images": np.zeros((2, 8, 8)), "originals": np.zeros((1, 8, 8), np.uint8)}, "one of each"),
        "labels": ({"images": np.zeros((2, 8, 8)), "labels": np.array([3, 10])}, "from 0 to 9"),
    }
    for name, (arrays, said) in cases.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        assert said in refusal(capfd, diffusion, "denoise", f"run={run}", f"images={tmp_path / name}.npz")
    (tmp_path / "folder").mkdir()
    assert "no PNG" in refusal(capfd, diffusion, "denoise", f"run={run}", f"images={tmp_path / 'folder'}")
    for name, side in (("a", 8), ("b", 8), ("c", 9)):
        save(tmp_path / "folder" / f"{name}.png", np.zeros((side, side), np.uint8))
    said = refusal(capfd, diffusion, "denoise", f"run={run}", f"images={tmp_path / 'folder'}")
    assert "a.png and c.png are of 8 x 8 and 9 x 9" in said
    (tmp_path / "folder" / "a.png").write_bytes(b"no picture")
    assert "cannot be read" in refusal(capfd, diffusion, "denoise", f"run={run}", f"images={tmp_path / 'folder'}")


def test_latents_and_autoencoders_are_refused(tmp_path, capfd):
    """The refusal comes before any codec is looked for."""
    vae = run_training(tmp_path, "trainer.max_steps=1", "trainer.log_every_n_steps=1", base=AUTOENCODER)
    assert "makes no images" in refusal(capfd, diffusion, "denoise", f"run={vae}")
    latent = run_training(
        tmp_path, "experiment=digits_latent", f"codec.run={vae}", "trainer.max_steps=1", "trainer.log_every_n_steps=1"
    )
    vae.rename(tmp_path / "moved")
    assert "lives in latents" in refusal(capfd, diffusion, "denoise", f"run={latent}")
