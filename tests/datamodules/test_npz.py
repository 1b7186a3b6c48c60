import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.batch import DataError, DataSpec
from datamodules.npz import Npz

COUNTS = {"train": 30, "val": 5, "test": 6}


def arrays(shape=(6, 7), classes: int = 3, **changes) -> dict[str, np.ndarray]:
    """The arrays of a small whole file; a change replaces one, and None leaves it out."""
    rng = np.random.default_rng(0)
    made = {}
    for name, n in COUNTS.items():
        made[f"{name}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        made[f"{name}_labels"] = (np.arange(n, dtype=np.uint8) % classes)[:, None]
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def load(tmp_path: Path, save=np.savez, **options) -> Npz:
    save(tmp_path / "data.npz", **arrays(**options))
    data = Npz(str(tmp_path / "data.npz"))
    data.setup()
    return data


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((6, 7), (1, 6, 7)),
        ((6, 7, 3), (3, 6, 7)),
        ((6, 7, 1), (1, 6, 7)),
        ((6, 7, 4), (4, 6, 7)),
        ((6, 7, 5), (1, 6, 7, 5)),
        ((6, 7, 5, 2), (2, 6, 7, 5)),
    ],
)
def test_channels_come_first_and_pixels_stay_where_they_were(tmp_path, stored, expected):
    data = load(tmp_path, shape=stored)
    assert data.spec == DataSpec(expected, 3)
    images = data.split("test").images.numpy()
    original = arrays(shape=stored)["test_images"]
    if expected[0] == 1:
        assert np.array_equal(images.ravel(), original.ravel())
    for channel in range(expected[0] if expected[0] > 1 else 0):
        assert np.array_equal(images[:, channel], original[..., channel])


def test_compressed_files_and_flat_labels_read_alike(tmp_path):
    plain = load(tmp_path).fingerprint()
    flat = {f"{name}_labels": arrays()[f"{name}_labels"][:, 0].astype(">i4") for name in COUNTS}
    assert load(tmp_path, save=np.savez_compressed, **flat).fingerprint() == plain


def test_rows_of_several_labels(tmp_path):
    rows = {f"{name}_labels": np.eye(4, dtype=np.uint8)[np.arange(n) % 4] for name, n in COUNTS.items()}
    data = load(tmp_path, **rows)
    assert data.spec == DataSpec((1, 6, 7), 4, multi_label=True)
    assert data.split("val")[torch.tensor([2])]["label"].tolist() == [[0, 0, 1, 0]]


def test_a_file_without_labels(tmp_path):
    data = load(tmp_path, **{f"{name}_labels": None for name in COUNTS})
    assert data.spec == DataSpec((1, 6, 7), None)
    assert "label" not in data.split("train")[torch.arange(2)]


def test_without_val_a_tenth_of_each_class_is_set_apart(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = load(tmp_path, val_images=None, val_labels=None)
    assert "no val_images: 3 of train are set apart" in caplog.text
    assert data.split("val").labels.sort().values.tolist() == [0, 1, 2]
    both = torch.cat([data.split("train").images, data.split("val").images]).flatten(1).tolist()
    assert sorted(both) == sorted(arrays()["train_images"].reshape(30, -1).tolist())
    assert data.fingerprint() == load(tmp_path, val_images=None, val_labels=None).fingerprint()


def test_real_white_blood_cells(shared_data):
    data = Npz(str(shared_data("bccd_wbc28/bccd_wbc28.npz")))
    assert data.spec == DataSpec((3, 28, 28), 4)
    assert [len(data.split(name)) for name in COUNTS] == [8832, 1098, 2558]


BAD = {
    "lacks train_images .it holds": {"train_images": None},
    "lacks test_images": {"test_images": None},
    "lacks val_images": {"val_images": None},
    "train: images are float32, but uint8 is needed: scale": {"train_images": np.zeros((30, 6, 7), np.float32)},
    "train: images are uint16": {"train_images": np.zeros((30, 6, 7), np.uint16)},
    "test: images of shape .6, 6. are neither": {"test_images": np.zeros((6, 6), np.uint8)},
    "test: images of shape .1, 6, 8., but in train .1, 6, 7.": {"test_images": np.zeros((6, 6, 8), np.uint8)},
    "val: the split is empty": {
        "val_images": np.zeros((0, 6, 7), np.uint8),
        "val_labels": np.zeros((0, 1), np.uint8),
    },
    "train: the split is empty": {
        "train_images": np.zeros((0, 6, 7), np.uint8),
        "train_labels": np.zeros((0, 1), int),
    },
    "train_labels holds pickled|holds pickled objects": {"train_labels": np.array([None] * 30)},
    "train_labels has the type <U1": {"train_labels": np.array(["a"] * 30)},
    "test: label 3 is out of range": {"test_labels": np.full(6, 3)},
    "val: label -2 is out of range": {"val_labels": np.full(5, -2)},
    "train: 30 images but labels of shape .29,.": {"train_labels": np.arange(29) % 3},
    "test: labels in one split and none": {"test_labels": None},
    "train: labels are float64": {"train_labels": np.full((30, 1), np.nan)},
}


@pytest.mark.parametrize("message", BAD)
def test_each_bad_array_is_named_in_one_line(tmp_path, message):
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, **BAD[message])
    assert "\n" not in str(caught.value) and "data.npz" in str(caught.value)


def test_labels_that_do_not_fit_are_named_before_val_is_set_apart(tmp_path):
    with pytest.raises(DataError, match=r"train: 30 images but labels of shape .31,."):
        load(tmp_path, val_images=None, val_labels=None, train_labels=np.arange(31) % 3)


def test_bad_paths_are_named(tmp_path):
    with pytest.raises(DataError, match=r"add dataset.path=FILE"):
        Npz()
    with pytest.raises(DataError, match=r"absent.npz does not exist"):
        Npz(str(tmp_path / "absent.npz")).setup()
    with pytest.raises(DataError, match="is a folder"):
        Npz(str(tmp_path)).setup()


def test_files_that_are_no_npz_are_named(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="no npz file, or cut short"):
            Npz(str(path)).setup()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_never_passes_for_data(tmp_path, save):
    path = tmp_path / "data.npz"
    save(path, **arrays())
    whole, original = path.read_bytes(), Npz(str(path)).fingerprint()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            found = Npz(str(path)).fingerprint()
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert found == original


@pytest.fixture
def large(tmp_path):
    """A function from a numpy function that saves, and further arrays, to a file in MedMNIST's layout."""

    def make(save, **more):
        rng = np.random.default_rng(0)
        arrays = {f"{name}_images": rng.integers(0, 256, (n, 9, 8, 3), dtype=np.uint8) for name, n in SIZES.items()}
        arrays |= {f"{name}_labels": np.arange(n)[:, None] % 3 for name, n in SIZES.items()}
        save(tmp_path / "x.npz", **{**arrays, **more})
        return {"path": str(tmp_path / "x.npz"), "cache": str(tmp_path / "cache")}

    return make


SIZES = {"train": 40, "val": 6, "test": 6}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_does_not_fit_into_memory_is_read_from_the_disk(large, save, tmp_path):
    keys = large(save)
    here, there = Npz(**keys), Npz(**keys, memory=0)
    assert there.split("train").stored and there.fingerprint() == here.fingerprint() and there.std() == here.std()
    for name in SIZES:
        assert torch.equal(there.split(name).images.load(), here.split(name).images)
        assert torch.equal(there.split(name).labels, here.split(name).labels)
    # Only what is compressed has to be unpacked, and only once.
    unpacked = sorted((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else []
    assert len(unpacked) == (3 if save is np.savez_compressed else 0)
    times = [path.stat().st_mtime_ns for path in unpacked]
    assert Npz(**keys, memory=0).fingerprint() == here.fingerprint()
    assert [path.stat().st_mtime_ns for path in unpacked] == times


@pytest.mark.parametrize("shape", [(40, 9, 8), (40, 7, 9, 8), (40, 7, 9, 8, 2)])
def test_grey_images_and_volumes_are_read_from_the_disk_alike(large, shape):
    images = {f"{name}_images": np.ones((n, *shape[1:]), np.uint8) * n for name, n in SIZES.items()}
    keys = large(np.savez, **images)
    here, there = Npz(**keys), Npz(**keys, memory=0)
    assert here.spec == there.spec and torch.equal(there.split("val").images.load(), here.split("val").images)


def test_a_validation_split_is_set_apart_on_the_disk_too(large, tmp_path):
    keys = large(np.savez)
    with np.load(keys["path"]) as file:
        np.savez(tmp_path / "y.npz", **{key: file[key] for key in file.files if not key.startswith("val")})
    here, there = (Npz(path=str(tmp_path / "y.npz"), memory=memory) for memory in (4, 0))
    assert there.split("val").stored and here.fingerprint() == there.fingerprint()


def test_large_arrays_that_cannot_be_used_in_place_are_named(large):
    keys = large(np.savez, train_images=np.asfortranarray(np.ones((40, 9, 8, 3), np.uint8)))
    with pytest.raises(DataError, match="train_images is saved in Fortran order"):
        Npz(**keys, memory=0).setup()
    keys = large(np.savez, train_images=np.ones((40, 9, 8, 3), np.float32))
    with pytest.raises(DataError, match="images are float32, but uint8 is needed"):
        Npz(**keys, memory=0).setup()
