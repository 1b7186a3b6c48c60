"""What `python -m diffusion augment` writes, that the folder source reads it back, and what is refused."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.arrays.split import Split
from datamodules.digits import Digits
from datamodules.folder import Folder
from datamodules.part import Part
from diffusion.apps.class_folders import ClassFolders, save_png
from tests.commands import diffusion, refusal
from tests.training import AUTOENCODER, run_training

pytestmark = pytest.mark.slow

QUICK = ["n=6", "variants=3", "strength=[0.3,0.8]", "classifier=false", "device=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_training(tmp_path_factory.mktemp("runs"), "trainer.max_steps=2")


@pytest.fixture(scope="module")
def done(run) -> Path:
    diffusion("augment", f"run={run}", *QUICK)
    return run / "augment"


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def folder_of(path: Path, tmp_path: Path, size: int) -> Folder:
    return Folder(path=str(path), size=size, cache=str(tmp_path / "cache"))


def pairs(split) -> Counter:
    """How often each image is there with each label."""
    return Counter(
        (image.numpy().tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)
    )


def test_the_folder_source_reads_real_images_and_variants(done, tmp_path):
    data, digits = folder_of(done / "images", tmp_path, 8), Digits()
    assert data.spec == digits.spec
    for name in ("val", "test"):
        assert pairs(data.split(name)) == pairs(digits.split(name))
    train, real = pairs(data.split("train")), pairs(digits.split("train"))
    assert train.total() == 808 + 18 and not real - train


def test_the_manifest_says_of_which_image_each_file_is(done):
    rows, train = manifest(done), Digits().split("train")
    files = {path.relative_to(done / "images").as_posix() for path in (done / "images").rglob("*.png")}
    assert [row["file"] for row in rows if row["file"] in files] == [row["file"] for row in rows] and len(files) == len(
        rows
    )
    variants = [row for row in rows if row["variant"] != "0"]
    assert len(variants) == 18 and {row["strength"] for row in variants} == {"0.3", "0.8"}
    assert len({row["seed"] for row in variants}) == 18
    for row in rows:
        place = int(row["index"])
        assert row["file"].startswith(f"{row['split']}/{row['class']}/{place:05d}")
        if row["split"] == "train":
            assert int(row["class"]) == train.labels[place]
        if row["variant"] == "0" and row["split"] == "train":
            assert torch.equal(pixels(done / "images" / row["file"]), train.images[place, 0])


def test_figures_are_those_of_the_files(done):
    metrics = json.loads((done / "metrics.json").read_text())
    assert (metrics["n"], metrics["variants"], metrics["of_each"]) == (6, 18, 3)
    with (done / "cases.csv").open(newline="") as file:
        cases = {(row["index"], str(int(float(row["variant"])))): row for row in csv.DictReader(file)}
    train, errors = Digits().split("train"), {"0.3": [], "0.8": []}
    for row in manifest(done):
        if row["variant"] != "0":
            image = pixels(done / "images" / row["file"]).double()
            mse = (image - train.images[int(row["index"]), 0]).div(255).square().mean().item()
            errors[row["strength"]].append(-10 * np.log10(mse))
            case = cases[row["index"], row["variant"]]
            assert float(case["psnr"]) == pytest.approx(errors[row["strength"]][-1], abs=1e-3)
            assert case["strength"] == row["strength"] and case["label"] == row["class"]
    for strength, values in errors.items():
        assert metrics["strengths"][strength]["psnr"]["value"] == pytest.approx(np.mean(values))
        assert metrics["strengths"][strength]["n"] == len(values)
    assert metrics["strengths"]["0.3"]["psnr"]["value"] > metrics["strengths"]["0.8"]["psnr"]["value"]
    with Image.open(done / "augment.png") as picture:
        assert picture.size[0] > 500


def test_a_variant_depends_on_neither_n_nor_batch_size_nor_the_others(done, run, tmp_path):
    # Of twelve images evenly spaced, three are among six.
    words = ["n=12", "variants=1", "strength=[0.3,0.8]", "classifier=false", "real=false", "batch_size=2", "device=cpu"]
    diffusion("augment", f"run={run}", f"out={tmp_path}/out", *words)
    rows = manifest(tmp_path / "out")
    assert len(rows) == 12 and all(row["variant"] == "1" for row in rows)
    first = {row["file"]: row for row in manifest(done)}
    both = [row for row in rows if row["file"] in first]
    assert len(both) == 3
    for row in both:
        assert row == first[row["file"]]
        a, b = (pixels(folder / "images" / row["file"]).int() for folder in (done, tmp_path / "out"))
        assert (a - b).abs().max() <= 1  # rounded: other batches sum in another order
    diffusion("augment", f"run={run}", f"out={tmp_path}/out", *words[1:], "n=1", "overwrite=true")
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 1


def test_a_run_without_labels(tmp_path):
    run = run_training(tmp_path, "trainer.max_steps=2", "model.condition=[]", "guidance=none")
    diffusion("augment", f"run={run}", *QUICK)
    assert json.loads((run / "augment" / "metrics.json").read_text())["variants"] == 18


def test_a_latent_run(tmp_path):
    autoencoder = run_training(tmp_path, "trainer.max_steps=2", base=AUTOENCODER)
    run = run_training(tmp_path, "trainer.max_steps=2", "experiment=digits_latent", f"codec.run={autoencoder}")
    diffusion("augment", f"run={run}", *QUICK, "real=false")
    rows = manifest(run / "augment")
    assert len(rows) == 18 and pixels(run / "augment" / "images" / rows[0]["file"]).shape == (8, 8)


def test_sixteen_bits_colours_and_odd_names(tmp_path):
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(-(1 << 15), 1 << 15, (4, 3, 8, 8), generator=rng, dtype=torch.int16)
    splits = {name: Split(images, torch.tensor([0, 1, 2, 0])) for name in ("train", "val", "test")}
    names = {split: [f"x/{k} {split}.tif" for k in range(4)] for split in splits}
    data = Part("data", splits, names, class_names=("a/b", "a|b", "c"))
    folders = ClassFolders(tmp_path / "images", data, data.spec)
    folders.copy(lambda: None)
    assert folders.rows[1]["file"] == "train/a-b-1/00001-1 train.png" and folders.rows[1]["source"] == "x/1 train.tif"
    found = folder_of(tmp_path / "images", tmp_path, 8)
    assert pairs(found.split("train")) == pairs(splits["train"])


def test_grey_of_sixteen_bits_comes_back(tmp_path):
    image = torch.arange(64, dtype=torch.int32).mul(1000).to(torch.uint16).view(1, 8, 8)
    save_png(image, tmp_path / "grey.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "grey.png")), image[0].numpy())


REFUSED = [
    ("variants=0", "variants=0: ask for at least 1"),
    ("strength=[]", "give a number, or several different ones"),
    ("strength=[0.5,0.5]", "several different ones"),
    ("strength=[1.5]", "give a number above 0"),
    ("strength=[0]", "give a number above 0"),
    ("split=all", "give train, val or test"),
    ("n=0", "n=0: ask for at least 1"),
    ("n=few", "give a whole number"),
    ("shown=0", "ask for at least 1"),
    ("prompt=cell", "a run takes no prompt"),
    ("size=64", "a run takes no size"),
    ("pipeline=x", "one of the two"),
]


@pytest.mark.parametrize(("word", "said"), REFUSED)
def test_one_bad_word_is_refused(run, capfd, tmp_path, word, said):
    assert said in refusal(capfd, diffusion, "augment", f"run={run}", f"out={tmp_path}/out", "device=cpu", word)
    assert not (tmp_path / "out").exists()


def test_what_no_class_folder_holds_is_refused(capfd, tmp_path):
    rng = np.random.default_rng(0)
    for name, shape, labels in [
        ("volumes", (6, 8, 8, 8), np.arange(6)[:, None] % 2),
        ("several", (6, 8, 8), np.tile([[1, 1], [0, 1]], (3, 1))),
    ]:
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
            arrays[f"{split}_labels"] = labels
        np.savez(tmp_path / f"{name}.npz", **arrays)
        data = ["dataset=npz", f"dataset.path={tmp_path}/{name}.npz"]
        run = run_training(tmp_path / name, "trainer.max_steps=1", "guidance=none", *data)
        line = refusal(capfd, diffusion, "augment", f"run={run}", f"out={tmp_path}/out", "device=cpu")
        assert "translate" in line and ("2-D" if name == "volumes" else "several classes") in line
        assert not (tmp_path / "out").exists()


def test_a_pipeline_redraws_any_data(tmp_path, capfd):
    pytest.importorskip("transformers")
    from tests.tasks.test_pipeline import save_pipeline

    words = ["augment", f"pipeline={save_pipeline(tmp_path / 'tiny')}", f"out={tmp_path}/out", "device=cpu"]
    assert "dataset=NAME" in refusal(capfd, diffusion, *words)
    for word, said in [("sampler=ddim", "no sampler"), ("checkpoint=best", "no checkpoint"), ("steps=0", "at least 1")]:
        assert said in refusal(capfd, diffusion, *words, "dataset=digits", word)
    diffusion(*words, "dataset=digits", "real=false", "steps=4", "n=2", "variants=2", "classifier=false")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["prompts"][3] == "a microscope image of 3" and metrics["variants"] == 4
    assert set(metrics["strength_of_the_library"]) == {"0.25", "0.4", "0.55", "0.7"}
    rows = manifest(tmp_path / "out")
    assert {pixels(tmp_path / "out" / "images" / row["file"]).shape for row in rows} == {(8, 8)}
