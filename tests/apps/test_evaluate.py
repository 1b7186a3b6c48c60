"""`python -m diffusion evaluate`: figures with receipts, of a run and of a file, and what is refused."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.digits import Digits
from diffusion.apps import drawn
from diffusion.apps.drawn import in_proportion
from tests.commands import diffusion, refusal
from tests.training import run_training

QUICK = ["extractor=random", "device=cpu"]
REFERENCES = {"fid", "kid", "precision", "recall", "density", "coverage", "sliced_wasserstein"}

pytestmark = pytest.mark.slow


def save_samples(path: Path, images: torch.Tensor, labels: torch.Tensor | None = None) -> Path:
    """In the layout that `sample` writes."""
    arrays = {"images": images.movedim(1, -1).numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture
def file(tmp_path, digits) -> Path:
    """The validation half of the digits' test split, as if it were generated."""
    test = digits.split("test")
    return save_samples(tmp_path / "samples.npz", test.images[::2], test.labels[::2])


def evaluated(folder: Path, *words: str) -> dict:
    diffusion("evaluate", *words, f"out={folder}", f"cache={folder.parent / 'cache'}")
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return run_training(tmp_path_factory.mktemp("runs"), "trainer.max_steps=2")


def test_figures_of_a_file(file, tmp_path, digits):
    found = evaluated(tmp_path / "out", f"samples={file}", "dataset=digits", *QUICK)
    assert found["n"] == 450
    assert set(found["metrics"]) == REFERENCES
    for name in REFERENCES:
        for split, size in {"test": 899, "train": 808}.items():
            figure = found["metrics"][name][split]
            assert figure["low"] <= figure["value"] <= figure["high"] and figure["m"] == size
            assert figure["floor"]["n"] == 450
    # The samples are half of the test split: nearer to it than training images can be.
    fid = found["metrics"]["fid"]["test"]
    assert fid["value"] < fid["floor"]["value"]
    assert found["metrics"]["precision"]["test"]["value"] == 1.0
    assert "smaller than the window" in found["left_out"]["ms_ssim"]
    assert found["left_out"]["3: fid, test"].startswith("a covariance")  # 45 images of a class, 128 features
    assert set(found["classes"]) == {*"0123456789"} and "kid" in found["classes"]["3"]["metrics"]
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    assert len(rows) == 450 and [row["nearest_test_id"] for row in rows[:3]] == ["0", "2", "4"]
    for picture in ("metrics.png", "samples.png"):
        with Image.open(tmp_path / "out" / picture) as image:
            assert image.width > 600 and np.asarray(image.convert("L")).std() > 10
    receipt = found["receipt"]
    assert receipt["generated"]["images"] == 450 and len(receipt["generated"]["sha256"]) == 16
    assert receipt["data"]["fingerprint"] == digits.fingerprint()
    assert receipt["data"]["images"] == {"train": 808, "val": 90, "test": 899}
    assert receipt["extractor"]["name"] == "random" and receipt["extractor"]["resize"] is None
    assert {"neighbours", "code", "machine", "seconds", "seed", "intervals"} <= set(receipt)


def test_the_domain_extractor_reads_the_classes(file, tmp_path, monkeypatch):
    monkeypatch.setattr(Digits, "ordinal", True)
    found = evaluated(tmp_path / "out", f"samples={file}", "dataset=digits", "extractor.steps=150", "device=cpu")
    metrics = found["metrics"]
    assert metrics["label_accuracy"]["generated"]["value"] == pytest.approx(
        metrics["label_accuracy"]["test"]["value"], abs=0.03
    )
    # Whoever is wrong is wrong by a grade at least, and by nine at most.
    wrong, away = 1 - metrics["label_accuracy"]["test"]["value"], metrics["grade_error"]["test"]["value"]
    assert 0 < wrong <= away <= 9 * wrong
    assert 7 < metrics["inception_score"]["generated"]["value"] <= 10
    assert found["receipt"]["extractor"]["name"] == "domain"


@pytest.mark.slow
def test_a_run_is_drawn_once_and_as_sample_draws_it(run, digits, tmp_path, monkeypatch):
    words = [f"run={run}", *QUICK]
    first = evaluated(tmp_path / "first", *words, "n=12")
    generated = first["receipt"]["generated"]
    assert generated["step"] == 2 and generated["sampler"]["name"] == "dpmpp_2m" and generated["grid"]["steps"] == 2
    assert generated["guidance"]["scale"] > 1 and generated["ema"] == 0.998 and len(generated["weights"]) == 16
    labels = in_proportion(20, digits.split("train").labels.bincount().tolist()).tolist()
    words = [f"label={labels}".replace(" ", ""), "n=20", "batch_size=7", "device=cpu"]
    diffusion("sample", f"run={run}", *words, f"out={tmp_path / 'sample'}")
    words = [f"run={run}", *QUICK]
    evaluated(tmp_path / "more", *words, "n=20", "batch_size=5")
    (kept,) = (tmp_path / "cache").glob("drawn_*.npz")
    with np.load(kept) as first_drawn, np.load(tmp_path / "sample" / "samples.npz") as sampled:
        assert np.array_equal(first_drawn["images"], sampled["images"])
    # All is there now: nothing is drawn again.
    monkeypatch.setattr(drawn, "sample", None)
    again = evaluated(tmp_path / "again", *words, "n=12")
    for name, figures in first["metrics"].items():
        assert again["metrics"][name]["test"]["value"] == pytest.approx(figures["test"]["value"], rel=1e-5), name
    with pytest.raises(TypeError):
        evaluated(tmp_path / "other", *words, "n=12", "seed=1")


def test_classes_are_drawn_in_proportion():
    counts = [50, 30, 15, 5]
    labels = in_proportion(1000, counts)
    assert labels.bincount().tolist() == pytest.approx([10 * count for count in counts], abs=2)
    assert torch.equal(in_proportion(100, counts), labels[:100])
    assert labels[:40].bincount(minlength=4).tolist() == pytest.approx([20, 12, 6, 2], abs=2)


def test_a_damaged_cache_is_drawn_again_and_a_longer_one_kept(tmp_path, caplog):
    images = torch.arange(5 * 64, dtype=torch.int64).to(torch.uint8).view(5, 1, 8, 8)
    path = tmp_path / "cache" / "drawn.npz"
    drawn.keep(path, images)
    drawn.keep(path, images[:3])
    assert torch.equal(drawn.kept(path, (1, 8, 8)), images)
    assert len(drawn.kept(path, (3, 8, 8))) == 0 and "other images" in caplog.text
    path.write_bytes(path.read_bytes()[:200])
    assert len(drawn.kept(path, (1, 8, 8))) == 0 and "drawn again" in caplog.text


def test_batches_change_no_figure(file, tmp_path):
    words = [f"samples={file}", "dataset=digits", *QUICK, "n=80"]
    a, b = (evaluated(tmp_path / str(size), *words, f"batch_size={size}") for size in (256, 7))
    for name, figures in a["metrics"].items():
        for split, figure in figures.items():
            assert b["metrics"][name][split]["value"] == pytest.approx(figure["value"], rel=1e-3, abs=1e-6), name


def test_a_part_of_a_file_is_spread_over_it(file, tmp_path):
    evaluated(tmp_path / "out", f"samples={file}", "dataset=digits", *QUICK, "n=3")
    assert [row["id"] for row in csv.DictReader((tmp_path / "out" / "cases.csv").open())] == ["0", "242", "335"]


def test_samples_without_labels(tmp_path, digits):
    file = save_samples(tmp_path / "samples.npz", digits.split("test").images[:90])
    found = evaluated(tmp_path / "out", f"samples={file}", "dataset=digits", "extractor.steps=20", "device=cpu")
    assert found["classes"] == {} and "label_accuracy" not in found["metrics"]
    assert "generated" in found["metrics"]["inception_score"] and (tmp_path / "out" / "metrics.png").is_file()


def test_data_without_labels_and_volumes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_images": rng.integers(0, 256, (30, 8, 8, 8), dtype=np.uint8) for split in ("train", "val", "test")
    }
    np.savez(tmp_path / "data.npz", **arrays)
    file = save_samples(tmp_path / "samples.npz", torch.from_numpy(arrays["val_images"])[:, None])
    words = [f"samples={file}", "dataset=npz", f"dataset.path={tmp_path / 'data.npz'}"]
    found = evaluated(tmp_path / "out", *words, *QUICK)
    assert found["classes"] == {} and "kid" in found["metrics"] and "fid, test" in found["left_out"]
    assert (tmp_path / "out" / "samples.png").is_file()


def test_a_class_without_real_images(tmp_path, digits):
    test = digits.split("test")
    arrays = {}
    for split, classes in {"train": range(3), "val": range(3), "test": range(2)}.items():
        keep = torch.isin(test.labels, torch.tensor(classes))
        arrays |= {f"{split}_images": test.images[keep, 0].numpy(), f"{split}_labels": test.labels[keep].numpy()}
    np.savez(tmp_path / "data.npz", **arrays)
    keep = test.labels < 3
    file = save_samples(tmp_path / "samples.npz", test.images[keep], test.labels[keep])
    words = [f"samples={file}", "dataset=npz", f"dataset.path={tmp_path / 'data.npz'}"]
    found = evaluated(tmp_path / "out", *words, *QUICK)
    assert "no real image of this class in test" in found["left_out"]["class 2"] and len(found["classes"]) == 2


@pytest.fixture
def results(file, tmp_path):
    """Two results of evaluate on the same data, of 450 and of 100 images."""
    words = [f"samples={file}", "dataset=digits", *QUICK]
    evaluated(tmp_path / "a", *words)
    evaluated(tmp_path / "b", *words, "n=100")
    return tmp_path / "a", tmp_path / "b"


def changed(folder: Path, copy: Path, part: str, key: str, value: object) -> Path:
    found = json.loads((folder / "metrics.json").read_text())
    found["receipt"][part][key] = value
    copy.write_text(json.dumps(found))
    return copy


def test_two_receipts_are_compared_or_refused(results, tmp_path, caplog, capfd):
    a, b = results
    with caplog.at_level(logging.INFO):
        diffusion("evaluate", f"compare=[{a},{b}]")
    assert "n differs: 450 and 100" in caplog.text
    (line,) = [line for line in caplog.messages if "kid, test" in line]
    first, second = (
        json.loads((each / "metrics.json").read_text())["metrics"]["kid"]["test"]["value"] for each in (a, b)
    )
    assert f"{first:.4g}" in line and f"{second:.4g}" in line and f"{second - first:+.4g}" in line
    other = changed(b, tmp_path / "data.json", "data", "fingerprint", "f" * 16)
    assert "data.fingerprint" in refusal(capfd, diffusion, "evaluate", f"compare=[{a},{other}]")
    other = changed(b, tmp_path / "weights.json", "extractor", "weights", "f" * 16)
    assert "extractor.weights" in refusal(capfd, diffusion, "evaluate", f"compare=[{a},{other}]")
    other = changed(b, tmp_path / "resize.json", "extractor", "resize", "bilinear")
    assert "extractor.resize" in refusal(capfd, diffusion, "evaluate", f"compare=[{a},{other}]")


BAD_FILES = {
    "nan": (
        lambda x: {"images": np.where(np.arange(len(x))[:, None, None, None] < 2, np.nan, x / 255.0)},
        "2 of 450 images",
    ),
    "float": (lambda x: {"images": x / 255.0}, "float64, but uint8 is needed"),
    "shape": (lambda x: {"images": x[:, :4]}, "(N, 8, 8, 1) is needed"),
    "empty": (lambda x: {"images": x[:0]}, "holds no images"),
    "labels": (lambda x: {"images": x, "labels": np.full(len(x), 10)}, "the classes are 0 to 9"),
    "few": (lambda x: {"images": x, "labels": np.zeros(3, int)}, "one whole number an image"),
    "none": (lambda x: {"pictures": x}, "cannot be read as an npz file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(name, file, tmp_path, capfd):
    with np.load(file) as arrays:
        change, said = BAD_FILES[name]
        np.savez(tmp_path / "bad.npz", **change(arrays["images"]))
    words = [f"samples={tmp_path / 'bad.npz'}", "dataset=digits", *QUICK, f"out={tmp_path / 'out'}"]
    assert said in refusal(capfd, diffusion, "evaluate", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one of the two"),
        (["run=nowhere"], "does not exist"),
        (["samples=FILE"], "needs dataset=NAME"),
        (["samples=nowhere.npz", "dataset=digits"], "does not exist"),
        (["samples=FILE", "dataset=digits", "n=0"], "n=0: ask for at least 1"),
        (["samples=FILE", "dataset=digits", "n=few"], "n=few: give a whole number"),
        (["samples=FILE", "dataset=digits", "batch_size=0"], "batch_size=0"),
        (["samples=FILE", "dataset=digits", "extractor=inceptoin"], "did you mean inception"),
        (["samples=FILE", "dataset=digits", "extractor.steps=0"], "extractor.steps=0"),
        (["compare=[A]"], "takes two folders"),
        (["compare=[A,B]", "samples=FILE"], "takes two folders"),
        (["compare=[nowhere,nowhere]"], "is not what `evaluate` writes"),
    ],
)
def test_what_is_refused(words, said, file, tmp_path, capfd):
    words = [word.replace("FILE", str(file)) for word in words]
    extra = [] if words and words[0].startswith("compare") else [f"out={tmp_path / 'out'}", "device=cpu"]
    assert said in refusal(capfd, diffusion, "evaluate", *words, *extra)
