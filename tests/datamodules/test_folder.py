"""Pictures in folders, in tables and with masks: what becomes of them."""

import csv
import logging
import os

import numpy as np
import pytest
import torch

from datamodules.csv_table import CsvTable
from datamodules.folder import Folder
from datamodules.masks import Masks
from datamodules.table import natural_key
from tests.datamodules.pictures import class_folders, noise, png16, save


@pytest.fixture
def cache(tmp_path) -> dict[str, str]:
    return {"cache": str(tmp_path / "cache")}


def test_class_folders(tmp_path, cache):
    data = Folder(path=str(class_folders(tmp_path / "x", 30, ("grade10", "grade2", "none"))), size=16, **cache)
    assert data.spec.shape == (3, 16, 16) and data.spec.class_names == ("grade2", "grade10", "none")
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [24, 3, 3]
    for name in ("train", "val", "test"):
        classes = [data.spec.class_names[label] for label in data.split(name).labels]
        assert [path.split("/")[0] for path in data.names[name]] == classes
    rows = data.files
    assert len(rows) == 30 and rows[0][1:] == ("train", rows[0][0].split("/")[0])


def test_images_are_the_pictures(tmp_path, cache):
    for i in range(5):
        save(tmp_path / "x" / f"{i}.png", noise(i, (16, 16, 3)))
    data = Folder(path=str(tmp_path / "x"), size=16, val=0.2, test=0.2, **cache)
    assert data.spec.classes is None
    for split in ("train", "val", "test"):
        for name, image in zip(data.names[split], data.split(split).images, strict=True):
            assert np.array_equal(image.movedim(0, -1), noise(int(name[0]), (16, 16, 3)))


def test_folders_of_splits_are_kept(tmp_path, cache):
    for split, n in (("Training", 6), ("validation", 4), ("test", 2)):
        class_folders(tmp_path / "x" / split, n)
    data = Folder(path=str(tmp_path / "x"), size=16, **cache)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [6, 4, 2]
    assert data.names["val"][0].startswith("validation/a/") and data.spec.class_names == ("a", "b")


def test_patients_stay_on_one_side(tmp_path, cache):
    for i in range(60):
        save(tmp_path / "x" / "ab"[i % 2] / f"P{i % 17:02d}_{i}.png", noise(i, (8, 8, 3)))
    data = Folder(path=str(tmp_path / "x"), size=8, patient=r"P(\d+)_", **cache)
    sides = [{name.split("P")[1][:2] for name in data.names[split]} for split in ("train", "val", "test")]
    assert sum(map(len, sides)) == 17 == len(set.union(*sides))


def test_the_split_of_a_run_can_be_given_to_another(tmp_path, cache):
    folder = str(class_folders(tmp_path / "x", 30))
    first = Folder(path=folder, size=8, split_seed=7, **cache)
    with (tmp_path / "splits.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "split", "label"), *first.files])
    again = Folder(path=folder, size=8, split_seed=1, splits=str(tmp_path / "splits.csv"), **cache)
    assert again.names == first.names and again.fingerprint() == first.fingerprint()
    assert Folder(path=folder, size=8, split_seed=1, **cache).names != first.names


def test_sixteen_bits_are_kept_and_an_intensity_is_black_to_white(tmp_path, cache):
    values = np.array([[0, 100], [300, 4095]], np.uint16)
    for i in range(3):
        save(tmp_path / "x" / f"{i}.png", values)
    whole = Folder(path=str(tmp_path / "x"), size=2, **cache)
    images = whole.split("train")[torch.arange(1)]["image"]
    assert whole.split("train").images.dtype is torch.int16
    assert torch.allclose((images + 1) * 65535 / 2, torch.tensor([[[[0.0, 100], [300, 4095]]]]), atol=0.01)
    part = Folder(path=str(tmp_path / "x"), size=2, intensity=[100, 300], **cache)
    assert part.split("train")[torch.arange(1)]["image"].tolist() == [[[[-1, -1], [1, 1]]]]
    eight = Folder(path=str(tmp_path / "x"), size=2, intensity=[0, 4095], bits=8, **cache)
    assert eight.split("train").images[0].tolist() == [[[0, 6], [19, 255]]]


def test_dark_sixteen_bits_are_pointed_at(tmp_path, cache, caplog):
    for i in range(3):
        save(tmp_path / "x" / f"{i}.png", noise(i, (8, 8), np.uint16) // 16)
    with caplog.at_level(logging.WARNING):
        Folder(path=str(tmp_path / "x"), size=8, **cache).setup()
    assert "set dataset.intensity=[0,4095]" in caplog.text


def test_channels_and_bits_can_be_made_alike(tmp_path, cache):
    save(tmp_path / "x" / "grey.png", np.full((8, 8), 51, np.uint8))
    save(tmp_path / "x" / "grey16.png", np.full((8, 8), 51 * 257, np.uint16))
    (tmp_path / "x" / "rgb16.png").write_bytes(png16(np.full((8, 8, 3), 51 * 257, np.uint16)))
    for channels in (1, 3):
        data = Folder(path=str(tmp_path / "x"), size=8, channels=channels, bits=8, **cache)
        assert data.spec.shape == (channels, 8, 8)
        assert all((data.split(name).images == 51).all() for name in ("train", "val", "test"))


def test_unreadable_files_are_named_and_can_be_left_out(tmp_path, cache, caplog):
    folder = class_folders(tmp_path / "x", 30)
    whole = Folder(path=str(folder), size=8, **cache)
    spoilt = folder / whole.names["train"][3]
    spoilt.write_bytes(spoilt.read_bytes()[:150])
    data = Folder(path=str(folder), size=8, unreadable="skip", **cache)
    assert len(data.split("train")) == len(whole.split("train")) - 1
    assert f"1 files cannot be read and are left out: {whole.names['train'][3]}" in caplog.text
    assert whole.names["train"][3] not in [name for name, *_ in data.files]


def test_files_are_decoded_once_and_again_when_they_change(tmp_path, cache, monkeypatch):
    folder = class_folders(tmp_path / "x", 12)
    first = Folder(path=str(folder), size=8, **cache).fingerprint()
    decoded = []
    read = Folder.decode
    monkeypatch.setattr(Folder, "decode", lambda self, item: decoded.append(item) or read(self, item))
    assert Folder(path=str(folder), size=8, **cache).fingerprint() == first and not decoded
    save(folder / "a" / "0.png", noise(99))
    os.utime(folder / "a" / "0.png", (1, 1))
    assert Folder(path=str(folder), size=8, **cache).fingerprint() != first and len(decoded) == 12


def test_what_does_not_fit_into_memory_stays_on_the_disk(tmp_path, cache):
    folder = str(class_folders(tmp_path / "x", 30))
    here, there = Folder(path=folder, size=8, **cache), Folder(path=folder, size=8, memory=0, **cache)
    assert there.split("train").stored and not here.split("train").stored
    assert here.fingerprint() == there.fingerprint() and here.std() == there.std()
    assert torch.equal(here.split("train").images, there.split("train").images.load())
    batches = [next(iter(data.train_dataloader())) for data in (here, there)]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])


def test_a_cache_that_was_cut_short_is_noticed(tmp_path, cache):
    data = Folder(path=str(class_folders(tmp_path / "x", 12)), size=8, **cache)
    data.setup()
    (path,) = (tmp_path / "cache").glob("*/train_images.bin")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Exception, match=r"train_images\.bin is missing or cut short: delete"):
        Folder(path=str(tmp_path / "x"), size=8, **cache).setup()


def test_a_table_names_labels_masks_patients_and_splits(tmp_path, cache):
    lines = ["Path,diagnosis,mask,patient,split,age"]
    for i in range(12):
        save(tmp_path / "images" / f"{i}.png", noise(i, (8, 8, 3)))
        save(tmp_path / "m" / f"{i}.png", np.full((8, 8), 255 * (i % 3 == 0), np.uint8))
        label, split = "x|y" if i % 4 == 0 else "y", ["train", "train", "val", "test"][i % 4]
        lines.append(f"images/{i}.png,{label},m/{i}.png,p{i},{split},50")
    (tmp_path / "t.csv").write_text("\n".join(lines).replace("Path", "path"))
    data = CsvTable(path=str(tmp_path / "t.csv"), size=8, columns={"label": "diagnosis"}, **cache)
    assert data.spec.multi_label and data.spec.class_names == ("x", "y") and data.spec.mask_classes == 2
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [6, 3, 3]
    train = data.split("train")
    for name, label, mask in zip(data.names["train"], train.labels, train.masks, strict=True):
        i = int(name.removeprefix("images/").removesuffix(".png"))
        assert label.tolist() == [int(i % 4 == 0), 1] and mask.unique().tolist() == [int(i % 3 == 0)]


def test_the_table_may_lie_elsewhere(tmp_path, cache):
    class_folders(tmp_path / "x", 6)
    (tmp_path / "t.csv").write_text("path\tlabel\n" + "".join(f"{'ab'[i % 2]}/{i}.png\t{i % 2}\n" for i in range(6)))
    data = CsvTable(path=str(tmp_path / "t.csv"), root=str(tmp_path / "x"), size=8, **cache)
    assert data.spec.class_names == ("0", "1")


def test_masks_are_found_beside_their_images(tmp_path, cache):
    for i in range(6):
        save(tmp_path / "x" / "images" / "s" / f"{i}.bmp", noise(i, (8, 8, 3)))
        save(tmp_path / "x" / "Masks" / "s" / f"{i}_mask.png", np.full((8, 8), [0, 130, 250][i % 3], np.uint8))
        save(tmp_path / "y" / f"{i}.jpg", noise(i, (8, 8, 3)))
        save(tmp_path / "y" / f"Mask_{i}.png", np.full((8, 8), [0, 130, 250][i % 3], np.uint8))
    two = Masks(path=str(tmp_path / "x"), size=8, **cache)
    one = Masks(path=str(tmp_path / "y"), size=8, images="*.jpg", masks="*.png", **cache)
    for data in (two, one):
        assert data.spec.mask_classes == 3
        for split in ("train", "val", "test"):
            for name, mask in zip(data.names[split], data.split(split).masks, strict=True):
                assert mask.unique().tolist() == [int(name.split("/")[-1][0]) % 3]


def test_values_beside_the_classes_become_the_nearest(tmp_path, cache, caplog):
    rim = np.zeros((40, 40), np.uint8)
    rim[10:30, 10:30], rim[9, 10], rim[9, 11] = 255, 127, 128
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", noise(i, (40, 40, 3)))
        save(tmp_path / "masks" / f"{i}.png", rim)
    with caplog.at_level(logging.INFO):
        data = Masks(path=str(tmp_path), size=40, **cache)
        mask = data.split("train").masks[0, 0]
    assert "mask values 0, 255 are classes 0 to 1; 0.12% of the pixels have others" in caplog.text
    assert mask[9, 10:12].tolist() == [0, 1] and mask.sum() == 401
    # From the cache, where no mask is opened, it is said again.
    caplog.clear()
    Masks(path=str(tmp_path), size=40, **cache).setup()
    assert "mask values 0, 255 are classes 0 to 1; 0.12% of the pixels have others" in caplog.text


def test_a_cache_belongs_to_its_files(tmp_path, cache):
    """Uncompressed pictures are all of one size, and copies keep their times."""
    for root, value in (("r1", 10), ("r2", 200)):
        for i in range(3):
            path = save(tmp_path / root / f"{i}.bmp", np.full((8, 8, 3), value, np.uint8))
            os.utime(path, (1, 1))
        for kind, mask in (("A", value), ("B", 0)):
            path = save(tmp_path / root / f"{kind}.bmp", np.full((8, 8), mask, np.uint8))
            os.utime(path, (1, 1))
    table = tmp_path / "t.csv"
    seen = []
    for root, mask in (("r1", "A"), ("r2", "A"), ("r2", "B")):
        table.write_text("path,mask\n" + "".join(f"{i}.bmp,{mask}.bmp\n" for i in range(3)))
        data = CsvTable(path=str(table), root=str(tmp_path / root), size=8, values=[0, 255], **cache)
        seen.append((int(data.split("train").images.max()), int(data.split("train").masks.max())))
    assert seen == [(10, 0), (200, 1), (200, 0)]


def test_masks_keep_the_folders_of_splits(tmp_path, cache):
    for split, n in (("train", 5), ("Testing", 3)):
        for i in range(n):
            save(tmp_path / split / "images" / f"{i}.png", noise(i, (8, 8, 3)))
            save(tmp_path / split / "masks" / f"{i}.png", np.full((8, 8), 255, np.uint8))
    data = Masks(path=str(tmp_path), size=8, **cache)
    assert len(data.split("test")) == 3 and all(name.startswith("Testing/") for name in data.names["test"])


def test_smeared_masks_have_as_many_classes_as_they_mean(tmp_path, cache):
    rng = np.random.default_rng(0)
    for i in range(4):
        mask = np.where(noise(i, (40, 40)) > 99, 255, 0) + rng.integers(-8, 9, (40, 40))
        save(tmp_path / "images" / f"{i}.png", noise(i, (40, 40, 3)))
        save(tmp_path / "masks" / f"{i}.png", mask.clip(0, 255).astype(np.uint8))
    assert Masks(path=str(tmp_path), size=40, **cache).spec.mask_classes == 2


def test_labels_are_read_without_the_space_around_them(tmp_path, cache):
    x = class_folders(tmp_path / "x", 9)
    rows = [f"{'ab'[i % 2]}/{i}.png,{[' x | y z', 'x', ''][i % 3]}" for i in range(9)]
    (x / "t.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    data = CsvTable(path=str(x / "t.csv"), size=8, val=0.2, test=0.2, **cache)
    assert data.spec.class_names == ("x", "y z") and data.spec.multi_label


def test_odd_names_come_back_from_the_split_file(tmp_path, cache):
    names = ["a\nb", "a,b", ' a "b" ', "a\u2028b", "ü", "a;b\tc"]
    for i, name in enumerate(names):
        save(tmp_path / "x" / f"{name}.png", noise(i, (8, 8, 3)))
    first = Folder(path=str(tmp_path / "x"), size=8, val=0.2, test=0.2, **cache)
    with (tmp_path / "s.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "split", "label"), *first.files])
    again = Folder(path=str(tmp_path / "x"), size=8, splits=str(tmp_path / "s.csv"), **cache)
    assert again.names == first.names


def test_litter_of_archives_is_no_class(tmp_path, cache):
    class_folders(tmp_path / "x", 9)
    save(tmp_path / "x" / "__MACOSX" / "a" / "0.png", noise(0))
    assert Folder(path=str(tmp_path / "x"), size=8, val=0.2, test=0.2, **cache).spec.class_names == ("a", "b")


def test_real_class_folders(shared_data, cache):
    data = Folder(path=str(shared_data("bccd/wbc_crops")), patient=r"BloodImage_(\d+)", **cache)
    counts = torch.cat([data.split(name).labels for name in ("train", "val", "test")]).bincount()
    assert dict(zip(data.spec.class_names, counts.tolist(), strict=True)) == {
        "Basophil": 3,
        "Eosinophil": 88,
        "Lymphocyte": 33,
        "Monocyte": 20,
        "Neutrophil": 207,
    }
    assert data.spec.shape == (3, 64, 64)


@pytest.mark.slow
def test_real_masks(shared_data, cache):
    folder = shared_data("segmentation_wbc")
    data = Masks(path=str(folder), images="*.bmp", masks="*.png", **cache)
    assert data.spec.mask_classes == 3 and sum(len(data.split(name)) for name in ("train", "val", "test")) == 400
    # The nucleus is dark and lies in the cell, whose rim is cytoplasm; on average, over all images.
    split = data.split("train")
    grey = split.images.float().mean(1, keepdim=True)
    background, cytoplasm, nucleus = (grey[split.masks == k].mean() for k in range(3))
    assert nucleus < cytoplasm < background


def test_numbers_in_names_are_sorted_by_value():
    assert sorted(["a10", "a2", "a", "b1"], key=natural_key) == ["a", "a2", "a10", "b1"]
