"""`python -m diffusion audit`: planted copies, the gate's status, a run's membership, and what is refused."""

import csv
import json
import logging
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.digits import Digits
from diffusion.metrics.copies import lightly_changed
from tests.commands import diffusion, refusal, save_samples
from tests.training import run_training

QUICK = ["extractor=random", "device=cpu"]
COLUMNS = ["id", "label", "flagged", "ratio", "nearest_train_id", "pixel_ratio", "feature_ratio"]
COLUMNS += ["pixel_distance", "feature_distance"]
FILES = {"metrics.json", "cases.csv", "held_out.csv", "pairs.png", "ratios.png"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def planted() -> list[int]:
    """The training images of which there are copies."""
    return list(range(3, 803, 40))


@pytest.fixture(scope="module")
def file(tmp_path_factory, digits, planted) -> Path:
    """180 blends of two held-out images of one class, and after them 20 copies, 16 of them lightly changed."""
    train, test = digits.split("train"), digits.split("test")
    blends = []
    for i in range(180):
        same = (test.labels == test.labels[i]).nonzero().flatten()
        a, b = test.images[i].float(), test.images[same[-1 - i % 20]].float()
        blends.append((0.5 * a + 0.5 * b).round().to(torch.uint8))
    copies = train.images[planted]
    copies[4:] = lightly_changed(copies[4:], seed=3)
    images = torch.cat([torch.stack(blends), copies])
    return save_samples(
        tmp_path_factory.mktemp("samples") / "samples.npz",
        images,
        torch.cat([test.labels[:180], train.labels[planted]]),
    )


def words(folder: Path, *more: str) -> list[str]:
    return ["audit", f"out={folder}", f"cache={folder.parent / 'cache'}", *QUICK, *more]


def result(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_planted_copies_fail_the_gate_when_all_is_written(file, tmp_path, planted, capfd, caplog):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended, caplog.at_level(logging.INFO):
        diffusion(*words(out, f"samples={file}", "dataset=digits", "max_copies=0.05"))
    assert ended.value.code == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("audit failed: ") and "of 200 images" in last and "max_copies is 5%" in last
    assert {path.name for path in out.iterdir()} >= FILES

    rows = rows_of(out / "cases.csv")
    assert list(rows[0]) == COLUMNS and [row["id"] for row in rows] == [str(i) for i in range(200)]
    flagged = [row for row in rows if row["flagged"] == "1"]
    assert sum(int(row["id"]) >= 180 for row in flagged) >= 19
    assert sum(int(row["id"]) < 180 for row in flagged) <= 2
    assert [int(row["nearest_train_id"]) for row in rows[180:184]] == planted[:4]
    assert all((float(row["ratio"]) < 1) == (row["flagged"] == "1") for row in rows)
    assert rows[180]["label"] and float(rows[180]["pixel_distance"]) == 0

    found = result(out)
    assert found["n"] == 200 and found["verdict"] == "fail" and found["max_copies"] == 0.05
    copies = found["copies"]
    assert copies["value"] == len(flagged) / 200 and copies["low"] < copies["value"] < copies["high"]
    assert found["held_out_flagged"]["value"] <= 0.01 and found["planted_flagged"]["value"] >= 0.95
    assert 0 < found["pixel"]["threshold"] <= 0.5 < found["pixel"]["median"]
    assert found["membership"] is None and "no model" in found["left_out"]["membership"]
    assert found["receipt"]["held_out"]["splits"] == ["val", "test"]
    assert {"extractor", "neighbours", "data", "code", "machine", "seed", "seconds"} <= set(found["receipt"])
    held_out = rows_of(out / "held_out.csv")
    assert list(held_out[0]) == COLUMNS and held_out[0]["id"].startswith("val/")
    shares = [row["flagged"] == "1" for row in held_out]
    assert len(held_out) == found["held_out_flagged"]["n"]
    assert np.mean(shares) == pytest.approx(found["held_out_flagged"]["value"])
    assert "of 200 lightly changed training images are flagged" in caplog.text
    for picture in ("pairs.png", "ratios.png"):
        with Image.open(out / picture) as image:
            assert image.width > 600 and np.asarray(image.convert("L")).std() > 10


def test_a_limit_that_holds_passes(file, tmp_path):
    out = tmp_path / "out"
    diffusion(*words(out, f"samples={file}", "dataset=digits", "max_copies=0.5", "n=30", "shown=13"))
    assert result(out)["verdict"] == "pass" and result(out)["n"] == 30


@pytest.mark.slow
def test_a_run(tmp_path, caplog):
    """The figures of an untrained model: no copies, and its membership is as good as a guess."""
    run = run_training(tmp_path / "runs", "trainer.max_steps=2")
    diffusion("audit", f"run={run}", *QUICK, "n=30", "members=60")
    found = result(run / "audit")
    assert found["n"] == 30 and found["verdict"] is None and found["max_copies"] is None
    assert found["copies"]["value"] == 0 and found["copies"]["high"] > 0.05
    membership = found["membership"]
    assert membership["n"] == 120 and 0.35 < membership["value"] < 0.65
    assert 0 <= membership["low"] < membership["value"] < membership["high"] <= 1
    assert found["receipt"]["generated"]["step"] == 2
    # More members than there are: as many as there are of both kinds.
    diffusion("audit", f"run={run}", *QUICK, "n=2", "members=5000", "overwrite=true", "guidance=none")
    assert result(run / "audit")["membership"]["n"] == 2 * 808


@pytest.fixture
def volumes(tmp_path) -> Path:
    """Volumes without labels."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in {"train": 20, "val": 10, "test": 10}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 6, 7, 6), dtype=np.uint8)
    np.savez(tmp_path / "volumes.npz", **arrays)
    return tmp_path / "volumes.npz"


def test_volumes_without_labels(volumes, tmp_path):
    with np.load(volumes) as arrays:
        images = torch.from_numpy(np.concatenate([arrays["train_images"][:4], arrays["test_images"][:4]]))[:, None]
    file = save_samples(tmp_path / "samples.npz", images)
    out = tmp_path / "out"
    diffusion(*words(out, f"samples={file}", "dataset=npz", f"dataset.path={volumes}"))
    rows = rows_of(out / "cases.csv")
    assert [row["flagged"] for row in rows] == ["1"] * 4 + ["0"] * 4 and rows[0]["label"] == ""
    assert [row["nearest_train_id"] for row in rows[:4]] == [*"0123"]


@pytest.mark.slow
def test_a_run_on_several_labels_an_image(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in {"train": 48, "val": 16, "test": 16}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (n, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", **arrays)
    options = ["trainer.max_steps=2", "dataset=npz", f"dataset.path={tmp_path / 'data.npz'}", "model.condition=[]"]
    run = run_training(tmp_path / "runs", *options)
    diffusion("audit", f"run={run}", *QUICK, "n=4", "members=10")
    assert result(run / "audit")["membership"]["n"] == 20
    assert rows_of(run / "audit" / "held_out.csv")[0]["label"].count(" ") == 2


def test_near_duplicates_in_the_held_out_splits_are_listed(tmp_path, digits, caplog):
    """A fifth of the test split is nearly in the training split."""
    arrays = {f"{name}_images": digits.split(name).images[:, 0].numpy().copy() for name in ("train", "val", "test")}
    train = digits.split("train").images
    arrays["test_images"][:180] = lightly_changed(train[:180])[:, 0].numpy()
    np.savez(tmp_path / "data.npz", **arrays)
    file, out = save_samples(tmp_path / "samples.npz", lightly_changed(train[:100], seed=4)), tmp_path / "out"
    diffusion(*words(out, f"samples={file}", "dataset=npz", f"dataset.path={tmp_path / 'data.npz'}"))
    listed = {row["id"]: row["nearest_train_id"] for row in rows_of(out / "near_duplicates.csv")}
    assert sum(listed.get(f"test/{i}") == str(i) for i in range(180)) >= 171
    assert "near_duplicates.csv" in caplog.text and "near-duplicates" in result(out)["left_out"]["near_duplicates"]
    assert result(out)["copies"]["value"] >= 0.95 and result(out)["held_out_flagged"]["value"] <= 0.01


def test_a_split_of_the_sources_of_the_training_split_is_left_out(tmp_path, digits, caplog):
    arrays = {f"{name}_images": digits.split(name).images[:, 0].numpy() for name in ("train", "test")}
    arrays["val_images"] = lightly_changed(digits.split("train").images[:200])[:, 0].numpy()
    np.savez(tmp_path / "data.npz", **arrays)
    file, out = save_samples(tmp_path / "samples.npz", digits.split("train").images[:50]), tmp_path / "out"
    diffusion(*words(out, f"samples={file}", "dataset=npz", f"dataset.path={tmp_path / 'data.npz'}"))
    assert "the split val is left out" in caplog.text
    assert result(out)["receipt"]["held_out"]["splits"] == ["test"] and "val" in result(out)["left_out"]
    assert result(out)["copies"]["value"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["max_copies=1.5"], "max_copies=1.5: give a share from 0 to 1"),
        (["max_copies=-0.1"], "max_copies=-0.1"),
        (["members=0"], "members=0: ask for at least 1"),
        (["members=0.5"], "members"),
        (["shown=0"], "shown=0"),
        (["n=0"], "n=0"),
        (["extractor=no"], "extractor=no"),
        (["dataset=null"], "dataset"),
    ],
)
def test_what_is_refused(file, tmp_path, capfd, words, says):
    out = tmp_path / "out"
    line = refusal(capfd, diffusion, "audit", f"samples={file}", "dataset=digits", f"out={out}", *QUICK, *words)
    assert says in line
    assert not out.exists() or not any(out.iterdir())


def test_held_out_images_that_are_all_copies_are_refused(tmp_path, digits, capfd):
    train = digits.split("train").images[:, 0].numpy()
    np.savez(tmp_path / "data.npz", train_images=train, val_images=train[:1], test_images=train[40:42])
    file = save_samples(tmp_path / "samples.npz", digits.split("test").images[:5])
    arguments = words(tmp_path / "out", f"samples={file}", "dataset=npz", f"dataset.path={tmp_path / 'data.npz'}")
    with mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0"}), pytest.raises(SystemExit) as ended:
        diffusion(*arguments)
    last = capfd.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and last.startswith("error: ") and "near-duplicates of training images" in last
