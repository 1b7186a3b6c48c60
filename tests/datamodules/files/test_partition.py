import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from datamodules.batch import DataError
from datamodules.files.partition import partition, read_splits, rows_by_ratio
from datamodules.table import Item


def items(n: int, classes: int = 3, patients: int | None = None, **fixed) -> list[Item]:
    return [
        Item(Path(f"{i}"), f"{i:03d}", str(i % classes), patient=f"p{i % patients}" if patients else "", **fixed)
        for i in range(n)
    ]


def counts(found: list[Item]) -> dict[str, Counter]:
    return {split: Counter(item.label for item in found if item.split == split) for split in ("train", "val", "test")}


def test_each_class_is_divided_in_the_ratio():
    found = counts(partition(items(300), 0.1, 0.2, seed=0))
    assert found == {
        "train": Counter({"0": 70, "1": 70, "2": 70}),
        "val": Counter({"0": 10, "1": 10, "2": 10}),
        "test": Counter({"0": 20, "1": 20, "2": 20}),
    }


def test_a_rare_class_goes_to_train_first():
    rare = [*items(100, classes=1), Item(Path("x"), "x", "rare"), Item(Path("y"), "y", "rare")]
    found = counts(partition(rare, 0.1, 0.1, seed=3))
    assert found["train"]["rare"] == 2


@pytest.mark.parametrize("seed", range(40))
def test_few_files_never_take_a_class_from_train(seed):
    for each in ({"a": 3, "b": 3, "c": 1}, {"a": 4, "b": 2, "c": 1}):
        few = [Item(Path(f"{label}{i}"), f"{label}{i}", label) for label, n in each.items() for i in range(n)]
        found = counts(partition(few, 0.1, 0.1, seed))
        assert set(found["train"]) == {"a", "b", "c"} and found["val"] and found["test"]


@pytest.mark.parametrize(("classes", "each"), [(50, 5), (50, 4), (10, 15)])
def test_what_small_classes_leave_over_is_shared(classes, each):
    found = counts(partition(items(classes * each, classes), 0.1, 0.1, seed=0))
    sizes = {name: sum(count.values()) for name, count in found.items()}
    assert abs(sizes["val"] - sizes["test"]) <= 1 and set(map(len, [found["train"]])) == {classes}


def test_single_labels_are_divided_alike_where_several_hold_at_once():
    rng = random.Random(0)
    findings = [f"f{k}" for k in range(14)]
    many = [
        Item(Path(f"{i}"), f"{i:04d}", "|".join(f for k, f in enumerate(findings) if rng.random() < 0.3 / (k + 1)))
        for i in range(2000)
    ]
    found = partition(many, 0.1, 0.1, seed=0)
    for label in findings:
        total = sum(label in item.labels for item in found)
        for split in ("val", "test"):
            share = sum(label in item.labels for item in found if item.split == split) / total
            assert share == pytest.approx(0.1, abs=0.03), (label, split)


def test_patients_stay_together_and_classes_nearly_in_ratio():
    found = partition(items(400, classes=2, patients=57), 0.15, 0.15, seed=1)
    sides = {(item.patient, item.split) for item in found}
    assert len(sides) == 57
    for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        for label, count in counts(found)[split].items():
            assert count == pytest.approx(200 * share, abs=8), (split, label)


def test_the_division_hangs_on_the_seed_and_not_on_the_order():
    first = partition(items(90), 0.1, 0.1, seed=0)
    assert first == partition(items(90)[::-1], 0.1, 0.1, seed=0)
    assert first != partition(items(90), 0.1, 0.1, seed=1)


def test_given_splits_are_kept_and_a_missing_one_is_taken_from_train():
    given = [*items(48, split="train"), *(Item(Path("t"), f"t{i}", str(i % 3), split="test") for i in range(6))]
    found = counts(partition(given, 0.25, 0.1, seed=0))
    assert sum(found["test"].values()) == 6 and sum(found["val"].values()) == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: partition(items(9), 0.0, 0.1, 0), "give shares above 0"),
        (lambda: partition(items(9), 0.6, 0.4, 0), "together below 1"),
        (lambda: partition(items(2), 0.1, 0.1, 0), "2 files or patients are too few"),
        (lambda: partition(items(30, patients=2), 0.1, 0.1, 0), "2 files or patients are too few"),
        (lambda: partition([*items(3, split="train"), Item(Path("x"), "x", "0")], 0.1, 0.1, 0), "x has no split, but"),
        (lambda: partition(items(3, split="test"), 0.1, 0.1, 0), "without train"),
        (
            lambda: partition(
                [*items(3, patients=1, split="train"), *items(2, patients=1, split="val"), *items(2, split="test")],
                *(0.1, 0.1, 0),
            ),
            "1 patients are in several splits",
        ),
        (lambda: rows_by_ratio(3, None, 0.1, 0.1, 0), "3 images leave"),
        (lambda: rows_by_ratio(30, None, 1.0, 0.1, 0), "give shares above 0"),
    ],
)
def test_what_cannot_be_divided_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        given()


def test_a_split_file_is_followed(tmp_path, caplog):
    path = tmp_path / "splits.csv"
    path.write_text("\ufeffpath;split;note\n001;Training;x\n000;valid;y\n002;test;z\n")
    found = read_splits(path, items(5))
    assert [(item.name, item.split) for item in found] == [("001", "train"), ("000", "val"), ("002", "test")]
    assert "leaves 2 of 5 files out" in caplog.text


def test_rows_are_divided_class_by_class():
    labels = torch.arange(200) % 4
    rows = rows_by_ratio(200, labels, 0.1, 0.2, seed=5)
    assert {name: labels[places].bincount().tolist() for name, places in rows.items()} == {
        "train": [35] * 4,
        "val": [5] * 4,
        "test": [10] * 4,
    }
    assert torch.equal(torch.cat(list(rows.values())).sort().values, torch.arange(200))
    assert len(rows_by_ratio(50, None, 0.1, 0.0, seed=0)["test"]) == 0
