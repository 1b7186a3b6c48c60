import csv
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from tests.commands import diffusion, refusal
from tests.metrics.test_duplicates import textures
from tests.training import AUTOENCODER, run_training

TINY = ["network=tiny", "network.channels=8", "accelerator=cpu", "batch_size=8", "seconds=0.3"]

pytestmark = pytest.mark.slow


@pytest.fixture
def figure() -> None:
    """For the tests that look at doctor.png; the others do without."""


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    if "figure" not in request.fixturenames:
        monkeypatch.setattr("diffusion.apps.doctor.save_figure", lambda *_: None)


def examined(out: Path, *words: str) -> tuple[int, dict]:
    """The status with which it ends, and its metrics.json."""
    status = 0
    with mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0"}):
        try:
            diffusion("doctor", *words, *TINY, f"out={out}")
        except SystemExit as ended:
            status = ended.code
    return status, json.loads((out / "metrics.json").read_text())


def cases(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "cases.csv").open()))


def said(found: dict, kind: str) -> str:
    return " | ".join(f"{each['severity']}: {each['text']}" for each in found["findings"] if each["kind"] == kind)


def folder(path: Path, n: int = 36, suffix: str = ".jpg") -> Path:
    """PATH/SPLIT/CLASS/FILE: pictures of two classes that differ, in splits of 3/4, 1/8 and 1/8."""
    for i, image in enumerate(textures(n, 3, 40, 40)):
        split = {6: "val", 7: "test"}.get(i // 2 % 8, "train")
        file = path / split / "ab"[i % 2] / f"cell_{i:03}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.movedim(0, -1).numpy()).save(file, quality=95)
    return path


def npz(path: Path, **changes: np.ndarray) -> Path:
    """Two classes, 30 / 6 / 6 images of 16 x 16."""
    images = textures(42, 3, 16, 16).movedim(1, -1).numpy()
    arrays = {}
    for split, rows in {"train": slice(30), "val": slice(30, 36), "test": slice(36, 42)}.items():
        arrays[f"{split}_images"] = images[rows].copy()
        arrays[f"{split}_labels"] = np.arange(len(images[rows]))[:, None] % 2
    np.savez(path, **arrays | changes)
    return path


def of_npz(path: Path) -> list[str]:
    return ["experiment=bloodmnist_pixel", "dataset=npz", f"dataset.path={path}"]


def of_folder(path: Path) -> list[str]:
    cache = f"dataset.cache={path.parent / 'cache'}"
    return ["experiment=leukemia_pixel", f"dataset.path={path}", "dataset.size=16", cache]


def test_a_clean_set_is_ready_and_no_run_is_made(tmp_path, capfd, monkeypatch, figure):
    monkeypatch.chdir(tmp_path)
    status, found = examined(tmp_path / "out", *of_npz(npz(tmp_path / "data.npz")), "trainer.max_steps=50")
    printed = capfd.readouterr().out.splitlines()
    assert (status, found["verdict"], printed[-1]) == (0, "ready", "ready")
    assert {path.name for path in tmp_path.iterdir()} == {"data.npz", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"doctor.png", "metrics.json", "cases.csv"}
    assert found["classes"] == {f"class {k}": {"train": 15, "val": 3, "test": 3} for k in range(2)}
    assert found["run"]["steps"] == 50 and found["run"]["epochs"] == pytest.approx(50 * 8 / 30)
    assert found["speed"]["images_per_second"] == pytest.approx(8 / found["speed"]["step_seconds"])
    memory, parameters = found["memory"], found["network"]["parameters"]
    assert memory["averaged"] == memory["gradients"] == 4 * parameters
    assert 8 * parameters <= memory["optimizer"] < 8 * parameters + 4096
    losses = found["one_batch"]["losses"]
    assert losses[-1] < losses[0]
    with Image.open(tmp_path / "out" / "doctor.png") as image:
        assert image.width > 1000 and np.asarray(image.convert("L")).std() > 10


def test_a_truncated_file_a_grey_one_and_a_duplicate_are_all_named(tmp_path, capfd):
    path = folder(tmp_path / "data")
    cut = path / "train" / "a" / "cell_000.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    grey = np.random.default_rng(0).integers(0, 65536, (40, 40)).astype(np.uint16)
    Image.fromarray(grey).save(path / "train" / "b" / "deep.png")
    (path / "test" / "b" / "again.jpg").write_bytes((path / "train" / "b" / "cell_001.jpg").read_bytes())
    status, found = examined(tmp_path / "out", *of_folder(path))
    printed = capfd.readouterr()
    assert status == 1 and found["verdict"].startswith("not ready: ")
    assert printed.err.splitlines()[-1] == found["verdict"]
    for name in ("train/a/cell_000.jpg", "train/b/deep.png", "test/b/again.jpg", "train/b/cell_001.jpg"):
        assert name in printed.out.split("error", 1)[1], name
    rows = {(row["kind"], row["file"]): row for row in cases(tmp_path / "out")}
    assert rows["files", "train/a/cell_000.jpg"]["severity"] == "error"
    assert "16 bits, grey" in rows["files", "train/b/deep.png"]["detail"]
    pair = rows["exact duplicates", "test/b/again.jpg"]
    assert (pair["severity"], pair["other_split"], pair["other_file"]) == ("error", "train", "train/b/cell_001.jpg")
    # It has gone on with the others.
    assert found["images"]["train"] == 27 and found["speed"]["steps"] >= 1
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_read_may_be_skipped(tmp_path):
    path = folder(tmp_path / "data")
    (path / "val" / "a" / "empty.jpg").write_bytes(b"")
    status, found = examined(tmp_path / "out", *of_folder(path), "dataset.unreadable=skip")
    assert status == 0 and "left out" in said(found, "files") and found["files"]["unreadable"] == 1


def test_flips_across_splits_constant_images_and_black_corners(tmp_path):
    file = npz(tmp_path / "plain.npz")
    with np.load(file) as arrays:
        train, val, test = (arrays[f"{split}_images"].copy() for split in ("train", "val", "test"))
    val[1], val[2] = train[4][:, ::-1], np.rot90(train[5])
    train[7], test[0] = 0, 200
    for image in train[10:16]:
        image[:5, :5] = 0
    changed = npz(tmp_path / "data.npz", train_images=train, val_images=val, test_images=test)
    status, found = examined(tmp_path / "out", *of_npz(changed))
    assert status == 0 and found["verdict"] == "ready, with 3 warnings"
    pairs = {(row["file"], row["other_file"]) for row in cases(tmp_path / "out") if row["kind"] == "near duplicates"}
    assert pairs == {("val 1", "train 4"), ("val 2", "train 5")}
    assert found["near_duplicates"]["share_in_train"] == {"val": pytest.approx(2 / 6), "test": 0}
    assert "train 7, test 0" in said(found, "values") and found["values"]["constant_images"] == 2
    assert {row["file"] for row in cases(tmp_path / "out") if row["kind"] == "corners"} == {
        f"train {i}" for i in range(10, 16)
    }


def test_classes_that_are_rare_or_missing(tmp_path):
    labels = np.zeros((30, 1), int)
    labels[:2] = 1
    changed = npz(tmp_path / "data.npz", train_labels=labels, test_labels=np.zeros((6, 1), int))
    status, found = examined(tmp_path / "out", *of_npz(changed))
    text = said(found, "classes")
    assert status == 0 and "fewer than 10 training images of class 1" in text
    assert "test has no image of class 1" in text and "class 0 has 28 training images, class 1 2" in text


def test_patients_on_both_sides(tmp_path):
    path = folder(tmp_path / "data")
    status, found = examined(tmp_path / "out", *of_folder(path), 'dataset.patient="cell_0(.)"')
    assert status == 1 and "patients on several sides" in said(found, "patients")
    assert found["patients"]["torn"] >= 1
    rows = [row for row in cases(tmp_path / "out") if row["kind"] == "patients"]
    assert rows and all(row["severity"] == "error" and row["split"] != row["other_split"] for row in rows)


def test_names_that_look_like_one_patient_are_a_hint_with_a_pattern_that_works(tmp_path):
    path = folder(tmp_path / "data")
    for split in ("train", "test"):
        for k, file in enumerate(sorted((path / split / "a").iterdir())[:2]):
            file.rename(file.with_name(f"cell_{900 + k}_{1 if split == 'train' else 2}.jpg"))
    _, found = examined(tmp_path / "out", *of_folder(path))
    assert found["patients"]["torn_stems"] == 2 and "dataset.patient" in said(found, "patients")
    # What it says, as a user would paste it.
    text = said(found, "patients")
    word = text[text.index("'dataset.patient") :].split("' ")[0].strip("'")
    status, found = examined(tmp_path / "again", *of_folder(path), word)
    assert status == 1 and found["patients"]["torn"] == 2


def test_a_network_that_does_not_fit_is_not_ready(tmp_path, figure):
    images = {f"{split}_images": textures(9, 1, 3, 3)[:, 0].numpy() for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(9)[:, None] % 2 for split in ("train", "val", "test")}
    file = npz(tmp_path / "data.npz", **images, **labels)
    status, found = examined(tmp_path / "out", *of_npz(file), "network.multipliers=[1,2,4,8]")
    assert status == 1 and "halve" in said(found, "network") and "classes" in found
    assert (tmp_path / "out" / "doctor.png").is_file()


def test_a_loss_that_explodes_is_not_ready(tmp_path):
    file = npz(tmp_path / "data.npz")
    words = ["optimizer.lr=1e30", "trainer.gradient_clip_val=null", "callbacks.learning_rate.warmup_steps=0"]
    status, found = examined(tmp_path / "out", *of_npz(file), *words)
    assert status == 1 and "lower optimizer.lr" in found["verdict"]


def test_limits_are_said(tmp_path):
    status, found = examined(tmp_path / "out", *of_npz(npz(tmp_path / "data.npz")), "n=20")
    assert status == 0 and "20 of 42 images were looked at" in said(found, "images") and found["looked_at"] == 20
    file = npz(tmp_path / "data.npz")
    _, found = examined(tmp_path / "time", *of_npz(file), "trainer.max_time=null", "trainer.max_steps=1")
    assert "27%" in said(found, "run") and found["run"]["limit"] == "trainer.max_steps"


def test_results_are_not_overwritten_unless_asked(tmp_path, capfd):
    words = [*of_npz(npz(tmp_path / "data.npz")), *TINY, f"out={tmp_path / 'out'}"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("mine")
    assert "overwrite=true" in refusal(capfd, diffusion, "doctor", *words)
    assert (tmp_path / "out" / "metrics.json").read_text() == "mine"
    diffusion("doctor", *words, "overwrite=true")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["verdict"] == "ready"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["experiment=bloodmnist_pixl"], "did you mean bloodmnist_pixel"),
        (["experiment=bloodmnist_pixel", "dataset=npz", "dataset.path=nowhere.npz"], "nowhere.npz"),
        (["experiment=leukemia_pixel", "dataset.path=nowhere"], "does not exist"),
        (["experiment=digits_pixel", "secnds=3"], "secnds"),
        (["experiment=digits_pixel", "seconds=0"], "seconds=0"),
        (["experiment=digits_pixel", "seconds=long"], "seconds=long"),
        (["experiment=digits_pixel", "batch_size=8,16"], "one config"),
        (["experiment=digits_pixel", "trainer.max_time=null"], "would never end"),
        (["experiment=digits_latent"], "there is no autoencoder yet"),
    ],
)
def test_mistakes_are_one_line(words, line, tmp_path, capfd):
    assert line in refusal(capfd, diffusion, "doctor", *words, f"out={tmp_path / 'out'}")


@pytest.mark.slow
def test_an_autoencoder_and_a_model_in_its_latents(tmp_path):
    runs = tmp_path / "runs"
    run = run_training(runs, "trainer.max_steps=2", base=AUTOENCODER)
    words = ["accelerator=cpu", "batch_size=8", "seconds=0.5"]
    diffusion("doctor", "experiment=digits_vae", *words, "model.network.channels=8", f"out={tmp_path / 'vae'}")
    diffusion(
        "doctor", "experiment=digits_latent", f"codec.run={run}", *words, "network.channels=8", f"out={tmp_path / 'l'}"
    )
    for out in ("vae", "l"):
        found = json.loads((tmp_path / out / "metrics.json").read_text())
        assert found["verdict"].startswith("ready") and found["speed"]["steps"] >= 1
    assert {path.name for path in runs.iterdir()} == {"digits_vae"}


@pytest.mark.slow
def test_real_blood_cells(shared_data, tmp_path):
    """Its own description says so: augmented crops from few photographs, some with black corners."""
    path = shared_data("bccd_wbc28/bccd_wbc28.npz")
    with np.load(path) as arrays:
        part = {key: value[:1098] for key, value in arrays.items()}
    np.savez(tmp_path / "part.npz", **part)
    status, found = examined(tmp_path / "out", *of_npz(tmp_path / "part.npz"))
    assert status == 0 and found["verdict"].startswith("ready, with ")
    assert 0.2 < found["corners"]["black"]["share"] < 0.4 and "black" in said(found, "corners")
    assert found["near_duplicates"]["share_in_train"]["val"] > 0.02
    assert found["near_duplicates"]["share_in_train"]["test"] == 0
