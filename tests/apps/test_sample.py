"""What `python -m diffusion sample` writes, and what a sample depends on."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.apps import tasks
from diffusion.errors import UserError
from diffusion.networks import UNet
from tests.training import run_training

pytestmark = pytest.mark.slow


def lively(run: Path) -> Path:
    """Shake the averaged weights, for two steps of training leave a network that says next to nothing."""
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    rng = torch.Generator().manual_seed(0)
    for value in content["ema"].values():
        value.add_(0.1 * torch.randn(value.shape, generator=rng))
    torch.save(content, path)
    return run


PLAN = ["trainer.max_steps=2", "augmentation=none"]
# Plain settings, whatever the recipe's own are; a later word wins.
WORDS = ["sampler=ddim", "guidance=none", "grid=karras", "grid.steps=4", "device=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return lively(run_training(tmp_path_factory.mktemp("run"), *PLAN))


def npz_run(folder: Path, shape: tuple[int, ...]) -> Path:
    """A run on data without labels."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_images": rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        for split, n in {"train": 32, "val": 4, "test": 4}.items()
    }
    np.savez(folder / "data.npz", **arrays)
    return lively(
        run_training(folder, *PLAN, "dataset=npz", f"dataset.path={folder / 'data.npz'}", "network.multipliers=[1,1]")
    )


@pytest.fixture
def sampled(run, tmp_path):
    """A function that samples into a folder of its own, and gives the arrays of samples.npz and the folder."""
    count = iter(range(100))

    def call(*words: str, of: Path = run):
        out = tmp_path / f"out{next(count)}"
        tasks.main(["sample", f"run={of}", f"out={out}", *WORDS, *words])
        with np.load(out / "samples.npz") as file:
            return dict(file), out

    return call


def metrics(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for rare grey levels: the order of sums may depend on the batch."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_files(sampled):
    arrays, out = sampled("n=12")
    assert {path.name for path in out.iterdir()} == {
        "samples.npz",
        "grid.png",
        "trajectory.gif",
        "metrics.json",
        "cases.csv",
    }
    assert set(arrays) == {"images", "labels"}
    images, labels = arrays["images"], arrays["labels"]
    assert (images.shape, images.dtype) == ((12, 8, 8, 1), np.uint8)
    assert (labels.shape, labels.dtype) == ((12,), np.int64)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(np.unique(images)) > 50
    found = metrics(out)
    assert (found["n"], found["seed"], found["steps"], found["guidance"]) == (12, 0, 4, None)
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["index"], row["seed"], row["label"]) for row in rows] == [
        (str(i), "0", str(i % 10)) for i in range(12)
    ]


def test_trajectory_has_a_frame_for_each_step(sampled):
    _, out = sampled("n=3", "grid.steps=7")
    assert Image.open(out / "trajectory.gif").n_frames == 7


def test_grid_shows_the_samples(sampled):
    arrays, out = sampled("n=10")
    picture = np.asarray(Image.open(out / "grid.png"))
    tile = 8 * 8 + 2  # 8 pixels, enlarged by 8, and a gap
    assert picture.shape == (tile + 2, 10 * tile + 2, 3)
    for i, image in enumerate(arrays["images"]):
        assert (picture[2:tile:8, 2 + i * tile : (i + 1) * tile : 8, 0] == image[..., 0]).all()


@pytest.mark.parametrize(
    ("word", "expected"),
    [("label=all", [0, 1, 2, 3, 4, 5]), ("label=7", [7] * 6), ("label=[3,1]", [3, 1, 3, 1, 3, 1])],
)
def test_labels(sampled, word, expected):
    arrays, _ = sampled("n=6", word)
    assert arrays["labels"].tolist() == expected


def test_a_class_is_asked_for_by_its_name_too(sampled, run, tmp_path):
    text = (run / "config.yaml").read_text()
    names = tmp_path / "named"
    shutil.copytree(run, names)
    for k, name in enumerate(("zero", "one", "two", "three")):
        text = re.sub(rf"^( +- )'{k}'$", rf"\1{name}", text, flags=re.MULTILINE)
    (names / "config.yaml").write_text(text)
    assert sampled("n=2", "label=two", of=names)[0]["labels"].tolist() == [2, 2]
    assert sampled("n=3", "label=[three,0,one]", of=names)[0]["labels"].tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    "word", ["label=10", "label=-1", "label=cat", "label=[0,10]", "label=[]", "n=0", "batch_size=0"]
)
def test_what_cannot_be_sampled(sampled, tmp_path, word):
    with pytest.raises(UserError) as error:
        sampled(word)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_label_is_heard(sampled):
    threes, _ = sampled("n=6", "label=3")
    fives, _ = sampled("n=6", "label=5")
    assert not alike(threes["images"], fives["images"])


def test_sample_depends_on_seed_and_place_alone(sampled):
    images = sampled("n=20")[0]["images"]
    assert alike(sampled("n=20", "batch_size=7")[0]["images"], images)
    assert alike(sampled("n=20", "batch_size=1")[0]["images"], images)
    assert alike(sampled("n=5")[0]["images"], images[:5])
    assert np.array_equal(sampled("n=20")[0]["images"], images)
    other = sampled("n=20", "seed=1")[0]["images"]
    assert not any(alike(a, b) for a in images for b in other)


def test_stochastic_sampler_depends_on_seed_and_place_alone(sampled):
    images = sampled("n=9", "sampler=ddpm")[0]["images"]
    assert alike(sampled("n=9", "sampler=ddpm", "batch_size=4")[0]["images"], images)
    assert not alike(sampled("n=9")[0]["images"], images)


@pytest.mark.parametrize(
    ("words", "evaluations", "sampler", "guidance"),
    [
        (["sampler=ddim", "grid.steps=10"], 10, "ddim", None),
        (["sampler=heun", "grid.steps=10"], 19, "heun", None),
        (["sampler=ddim", "grid.steps=10", "guidance=2"], 20, "ddim", 2.0),
        (["sampler=heun", "grid.steps=10", "guidance=1.5"], 38, "heun", 1.5),
        (["sampler=ddim", "grid.steps=10", "guidance=classifier_free", "guidance.scale=3"], 20, "ddim", 3.0),
        (["sampler=ddim", "grid.steps=10", "guidance=1"], 10, "ddim", 1.0),
        (["sampler=dpmpp_2m", "grid=uniform", "grid.steps=5", "guidance=none"], 5, "dpmpp_2m", None),
    ],
)
def test_evaluations(sampled, words, evaluations, sampler, guidance):
    _, out = sampled("n=3", *words)
    found = metrics(out)
    assert found["evaluations_per_image"] == evaluations
    assert (found["sampler"], found["guidance"]) == (sampler, guidance)


def test_guidance_changes_the_images(sampled):
    plain, strong = (sampled("n=4", word)[0]["images"] for word in ("guidance=1", "guidance=4"))
    assert not alike(plain, strong)
    assert alike(plain, sampled("n=4", "guidance=none")[0]["images"])


def test_results_are_not_overwritten_unasked(run, tmp_path):
    out = tmp_path / "out"
    words = ["sample", f"run={run}", f"out={out}", "n=2"]
    tasks.main(words)
    before = (out / "samples.npz").read_bytes()
    with pytest.raises(UserError, match="holds results already"):
        tasks.main([*words, "seed=1"])
    assert (out / "samples.npz").read_bytes() == before
    tasks.main([*words, "seed=1", "overwrite=true"])
    assert (out / "samples.npz").read_bytes() != before


def test_out_is_in_the_run_by_default(run):
    tasks.main(["sample", f"run={run}", "n=2"])
    assert (run / "sample" / "samples.npz").is_file()


def test_the_averaged_weights_are_used(run, sampled, tmp_path):
    images = sampled("n=4")[0]["images"]
    path = run / "checkpoints" / "last.ckpt"
    raw = path.read_bytes()
    content = torch.load(path, weights_only=True)
    try:
        for value in content["state_dict"].values():
            value.zero_()
        torch.save(content, path)
        assert np.array_equal(sampled("n=4")[0]["images"], images)
    finally:
        path.write_bytes(raw)


def test_unconditional_run(sampled, tmp_path):
    run = npz_run(tmp_path, (8, 8, 2))
    arrays, out = sampled("n=3", of=run)
    assert set(arrays) == {"images"} and arrays["images"].shape == (3, 8, 8, 2)
    assert (out / "cases.csv").read_text().splitlines()[1] == "0,0,"
    with pytest.raises(UserError, match="trained without labels"):
        sampled("n=3", "label=0", of=run)
    with pytest.raises(UserError, match="guidance needs a conditional model"):
        sampled("n=3", "guidance=2", of=run)


def test_volumes(sampled, tmp_path):
    run = npz_run(tmp_path, (6, 8, 10))
    arrays, out = sampled("n=3", of=run)
    assert arrays["images"].shape == (3, 6, 8, 10, 1)
    assert Image.open(out / "grid.png").size[0] > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "file", "shape", "classes"),
    [
        ("breastmnist", "medmnist/breastmnist.npz", (28, 28, 1), 2),
        ("adrenalmnist3d", "medmnist/adrenalmnist3d.npz", (28, 28, 28, 1), 2),
        ("npz", "bccd_wbc28/bccd_wbc28.npz", (28, 28, 3), 4),
    ],
)
def test_real_data(shared_data, sampled, tmp_path, dataset, file, shape, classes):
    path = shared_data(file)
    where = f"dataset.path={path}" if dataset == "npz" else f"dataset.root={path.parent}"
    run = run_training(
        tmp_path, *PLAN, f"dataset={dataset}", where, "+dataset.validation_limit=8", "batch_size=8", "grid.steps=2"
    )
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    arrays, _ = sampled(f"n={classes + 1}", of=run)
    assert arrays["images"].shape == (classes + 1, *shape)
    assert arrays["labels"].tolist() == [*range(classes), 0]


def test_sixteen_bits_are_the_same_image_in_finer_levels(sampled):
    eight, sixteen = (sampled("n=3", f"bits={bits}")[0]["images"] for bits in (8, 16))
    assert sixteen.dtype == np.uint16 and eight.dtype == np.uint8
    assert np.abs(sixteen / 257 - eight).max() <= 0.501
    assert len(np.unique(sixteen)) > len(np.unique(eight))
    with pytest.raises(UserError, match="bits=12: give 8 or 16"):
        sampled("n=3", "bits=12")


def test_in_bfloat16_the_network_alone_computes_so(sampled, monkeypatch):
    """Three digits of a value: some grey levels of 255, and not the same image."""
    forward, seen = UNet.forward, set()

    def watched(network, x, *args):
        answer = forward(network, x, *args)
        seen.add((x.dtype, answer.dtype))
        return answer

    monkeypatch.setattr(UNet, "forward", watched)
    plain, _ = sampled("n=6")
    assert seen == {(torch.float32, torch.float32)}
    seen.clear()
    coarse, out = sampled("n=6", "precision=bf16")
    assert seen == {(torch.float32, torch.bfloat16)}
    difference = np.abs(plain["images"].astype(int) - coarse["images"])
    assert 0 < difference.max() <= 25 and difference.mean() < 2
    assert metrics(out)["precision"] == "bf16"


def test_precisions_that_there_are_not(sampled):
    with pytest.raises(UserError, match="precision=16: give bf16, or null for float32"):
        sampled("n=3", "precision=16")
