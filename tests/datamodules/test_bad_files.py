"""Files and settings that cannot be used: each is one line that names it, and nothing is left behind."""

import gzip
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from datamodules.batch import DataError
from datamodules.csv_table import CsvTable
from datamodules.folder import Folder
from datamodules.masks import Masks
from datamodules.mnist import Mnist
from datamodules.npz import Npz
from datamodules.sprites import IMAGES, LABELS, Sprites
from tests.datamodules.pictures import class_folders, noise, png, save

BIG = 60_000


def folder(where: Path, **options) -> Folder:
    return Folder(**{"path": str(where), "size": 8, "cache": str(where.parent / "cache"), **options})


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


# What is done to twelve pictures in the folders a and b, and what is said of it.
SPOILT = {
    "truncated jpeg": (lambda x: cut(save(x / "a" / "z.jpg", noise(0)), 300), r"cannot be read: a/z\.jpg"),
    "truncated png": (lambda x: cut(x / "a" / "0.png", 200), r"cannot be read: a/0\.png.*truncated"),
    "empty file": (lambda x: (x / "a" / "z.bmp").touch(), r"z\.bmp is no picture"),
    "text": (lambda x: (x / "a" / "z.jpg").write_text("hello"), r"z\.jpg is no picture"),
    "truncated tiff": (lambda x: cut(save(x / "a" / "z.tif", noise(0)), 200), r"cannot be read: a/z\.tif"),
    "float tiff": (
        lambda x: tifffile.imwrite(x / "a" / "z.tif", np.zeros((8, 8), np.float32)),
        r"z\.tif holds float32: convert it to 8 or 16 bits",
    ),
    "stack of stacks": (
        lambda x: tifffile.imwrite(x / "a" / "z.tif", np.zeros((5, 6, 8, 8), np.uint8)),
        r"z\.tif has the axes .*one picture with up to 32 channels is needed",
    ),
    "animation": (
        lambda x: Image.fromarray(noise(0)).save(
            x / "a" / "z.png", save_all=True, append_images=[Image.fromarray(noise(1))]
        ),
        r"z\.png holds 2 pictures",
    ),
    "decompression bomb": (
        lambda x: (x / "a" / "z.png").write_bytes(png(BIG, BIG, 8, 2, b"\0" * 9999)),
        r"z\.png cannot be read as a picture .*exceeds limit",
    ),
    "decompression bomb of 16 bits": (
        lambda x: (x / "a" / "z.png").write_bytes(png(BIG, BIG, 16, 2, b"\0" * 9999)),
        r"z\.png claims more pixels than can be true",
    ),
    "16-bit grey among RGB": (
        lambda x: save(x / "a" / "z.png", noise(0, (8, 8), np.uint16)),
        r"a/z\.png becomes int16 of shape \(1, 8, 8\), but the files before it uint8 of \(3, 8, 8\)",
    ),
    "grey among RGB": (
        lambda x: save(x / "a" / "z.png", noise(0, (8, 8))),
        r"a/z\.png becomes uint8 of shape \(1, 8, 8\)",
    ),
    "link to a folder above": (lambda x: os.symlink(x, x / "a" / "up"), r"up is a symbolic link to .*a circle"),
    "link to itself": (lambda x: os.symlink("me", x / "a" / "me"), r"me is a symbolic link that leads nowhere"),
    "link to nothing": (lambda x: os.symlink("gone.png", x / "z.png"), r"z\.png is a symbolic link that leads nowhere"),
    "class that joins labels": (lambda x: (x / "a").rename(x / "a|c"), r"the class a\|c holds \|"),
    "folder beside splits": (
        lambda x: [class_folders(x / split, 4) for split in ("Training", "Testing")],
        r"the folder a lies beside the splits Testing, Training",
    ),
    "picture beside the classes": (lambda x: save(x / "z.png", noise(0)), r"z\.png has no label, but others have"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_folder_with_a_bad_file(kind, tmp_path):
    spoil, message = SPOILT[kind]
    spoil(class_folders(tmp_path / "x"))
    refused(lambda: folder(tmp_path / "x").setup(), message)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def refused(do, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        do()
    assert "\n" not in str(caught.value)


OPTIONS = {
    r"dataset\.path is not set": {"path": None},
    r"none does not exist": {"path": "none"},
    r"conftest\.py is a file": {"path": "tests/conftest.py"},
    r"size=0": {"size": 0},
    r"fit=cover: use crop, pad or stretch": {"fit": "cover"},
    r"channels=2: use 1, 3, or null": {"channels": 2},
    r"bits=12: use 8, 16, or null": {"bits": 12},
    r"channels=True: use 1, 3, or null": {"channels": True},
    r"intensity=\[9, 1\]: give \[low,high\]": {"intensity": [9, 1]},
    r"intensity=3: give \[low,high\]": {"intensity": 3},
    r"val=0 and": {"val": 0},
    r"val=0\.5 and dataset\.test=0\.5": {"val": 0.5, "test": 0.5},
    r"unreadable=ignore: use refuse or skip": {"unreadable": "ignore"},
    r"patient=\( is no regular expression": {"patient": "("},
    r"patient=\\d\* finds nothing in a/0\.png": {"patient": r"\d*"},
    r"patient=5: give a text": {"patient": 5},
    r"size=100000: give pixels, from 1 to": {"size": 100000},
    r"patient=case finds no patient in a/0\.png": {"patient": "case"},
    r"splits\.csv does not exist": {"splits": "splits.csv"},
    r"workers=-1": {"workers": -1},
    r"memory=-1": {"memory": -1},
    r"/proc/x cannot hold the prepared images": {"cache": "/proc/x"},
}


@pytest.mark.parametrize("message", OPTIONS)
def test_a_bad_setting(message, tmp_path):
    refused(lambda: folder(class_folders(tmp_path / "x"), **OPTIONS[message]).setup(), message)


def test_folders_without_pictures(tmp_path):
    (tmp_path / "x" / "a").mkdir(parents=True)
    refused(lambda: folder(tmp_path / "x").setup(), "holds no pictures")
    class_folders(tmp_path / "x", 2)
    refused(lambda: folder(tmp_path / "x").setup(), "holds 2 images")


SPLITS = {
    r"has no column path and split \(it has a, b\)": "a,b\n1,2\n",
    r"has no column": "",
    r"has a header, but no rows": "path,split\n",
    r"line 2: z\.png is not among the 12 files": "path,split\nz.png,train\n",
    r"line 2: there is no split 'holdout'": "path,split\na/0.png,holdout\n",
    r"line 3: a/0\.png is named a second time": "path,split\na/0.png,train\na/0.png,val\n",
    r"without train": "path,split\na/0.png,test\n",
    r"class b is in val, but not in train": "path,split\na/0.png,train\na/2.png,train\nb/1.png,val\na/4.png,test\n",
    r"cannot be read as a table": "path\0,split\n",
}


@pytest.mark.parametrize("message", SPLITS)
def test_a_bad_split_file(message, tmp_path):
    (tmp_path / "s.csv").write_text(SPLITS[message])
    refused(lambda: folder(class_folders(tmp_path / "x"), splits=str(tmp_path / "s.csv")).setup(), message)


TABLES = {
    r"line 2: \.\./\.\./etc/passwd leads out of": "path\n../../etc/passwd\n",
    r"line 2: /etc/passwd leads out of": "path\n/etc/passwd\n",
    r"line 2: a/\.\./\.\./y leads out of": "path,mask\na/0.png,a/../../y\n",
    r"1 of 1 files do not exist, the first .*a/77\.png": "path\na/77.png\n",
    r"has no column path": "file\na/0.png\n",
    r"line 3: a/0\.png is named in line 2 already": "path\na/0.png\na/0.png\n",
    r"line 2: the row has not 2 fields": "path,label\na/0.png\n",
    r"line 2: the path is empty": "path,label\n,1\n",
    r"line 3: \./a/0\.png is named in line 2 already": "path\na/0.png\n./a/0.png\n",
    r"line 3: this is no row of a table": "path,label\na/0.png,1\n" + "x" * 200_000 + ",1\n",
    r"b/1\.png has no label, but others have": "path,label\nb/1.png,\n"
    + "".join(f"a/{i}.png,1\n" for i in (0, 2, 4, 6)),
    r"two columns of one name": "path,path\na/0.png,b\n",
}


@pytest.mark.parametrize("message", TABLES)
def test_a_bad_table(message, tmp_path):
    table = class_folders(tmp_path / "x") / "t.csv"
    table.write_text(TABLES[message])
    refused(lambda: CsvTable(path=str(table), size=8, cache=str(tmp_path / "cache")).setup(), message)


def test_a_table_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes("path\nbild_ü.png\n".encode("latin-1"))
    refused(lambda: CsvTable(path=str(tmp_path / "t.csv")).setup(), "cannot be read as a table in UTF-8")
    refused(lambda: CsvTable(path=str(tmp_path / "t.csv"), columns={"lable": "x"}), "lable is none of path, label")
    refused(lambda: CsvTable(path=str(tmp_path / "t.csv"), columns="label"), "columns=label: give names of columns")


def masks(x: Path, **options) -> Masks:
    return Masks(path=str(x), size=8, cache=str(x.parent / "cache"), **options)


MASKS = {
    r"1 of 6 images have no mask, the first images/0\.png": lambda x: (x / "masks" / "0.png").unlink(),
    r"0\.png is \(4, 4\), but .* is \(8, 8\)": lambda x: save(x / "masks" / "0.png", np.zeros((4, 4), np.uint8)),
    r"are both masks of one picture": lambda x: save(x / "masks" / "0.bmp", np.zeros((8, 8), np.uint8)),
    r"too many for classes: set dataset\.values": lambda x: [
        save(x / "masks" / f"{i}.png", (np.arange(64, dtype=np.uint16) * 99).reshape(8, 8)) for i in range(6)
    ],
    r"no value of the masks fills a hundredth": lambda x: [
        save(x / "masks" / f"{i}.png", np.arange(6 * 64, dtype=np.uint16).reshape(6, 8, 8)[i] * 99) for i in range(6)
    ],
    r"the masks are empty": lambda x: [save(x / "masks" / f"{i}.png", np.zeros((8, 8), np.uint8)) for i in range(6)],
}


@pytest.mark.parametrize("message", MASKS)
def test_bad_masks(message, tmp_path):
    for i in range(6):
        save(tmp_path / "x" / "images" / f"{i}.png", noise(i, (8, 8, 3)))
        save(tmp_path / "x" / "masks" / f"{i}.png", np.full((8, 8), 255, np.uint8))
    MASKS[message](tmp_path / "x")
    refused(lambda: masks(tmp_path / "x").setup(), message)


def test_masks_that_cannot_be_told_from_images(tmp_path):
    class_folders(tmp_path / "x", 6)
    refused(lambda: masks(tmp_path / "x").setup(), "6 images and 0 masks are found|0 images and 0 masks are found")
    refused(lambda: masks(tmp_path / "x", images="*.png", masks="*.png").setup(), "tell them apart")
    for values in ([3], 3, ["a", "b"]):
        refused(lambda values=values: masks(tmp_path / "x", values=values), r"dataset\.values=.*: give two or more")


SPRITES = {
    r"does not exist": lambda x: None,
    r"holds pickled objects, which are refused": lambda x: np.save(x / IMAGES, np.array([{}, 1], object)),
    r"holds float64 of shape": lambda x: np.save(x / IMAGES, np.zeros((40, 16, 16, 3))),
    r"is saved in Fortran order": lambda x: np.save(x / IMAGES, np.asfortranarray(noise(0, (40, 16, 16, 3)))),
    r"is damaged, or no npy file": lambda x: (x / IMAGES).write_bytes(b"junk"),
    r"is cut short": lambda x: (np.save(x / IMAGES, noise(0, (40, 16, 16, 3))), cut(x / IMAGES, 9999)),
    r"a row is not one-hot": lambda x: (
        np.save(x / IMAGES, noise(0, (40, 16, 16, 3))),
        np.save(x / LABELS, np.ones((40, 5))),
    ),
    r"one-hot rows \(40, K\) are needed": lambda x: (
        np.save(x / IMAGES, noise(0, (40, 16, 16, 3))),
        np.save(x / LABELS, np.eye(5)),
    ),
}


@pytest.mark.parametrize("message", SPRITES)
def test_bad_sprites(message, tmp_path):
    SPRITES[message](tmp_path)
    refused(lambda: Sprites(path=str(tmp_path)).setup(), message)


IDX = {
    r"is damaged, or not gzipped": b"x",
    r"is no idx file of bytes with 3 axes": gzip.compress(b"abcd"),
    r"is cut short, or longer": gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 60000, 28, 28) + b"12"),
    r"claims 57344 GiB, more than can be true": gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, 2**31, 2**10, 28)),
    r"ubyte\.gz is wanted, and dataset\.download is off": None,
}


@pytest.mark.parametrize("message", IDX)
def test_bad_idx_files(message, tmp_path):
    if IDX[message] is not None:
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / f"t10k-{kind}-ubyte.gz").write_bytes(IDX[message])
    refused(lambda: Mnist(root=str(tmp_path), download=False, t10k_only=True).setup(), message)


def claimed(path: Path, shape: tuple[int, ...], truthful: bool) -> Path:
    """An npz file of three arrays of zeros that claim a shape."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("train", "val", "test"):
            with file.open(f"{name}_images.npy", "w") as member:
                member.write(head.getvalue())
                for _ in range(int(np.prod(shape)) >> 20 if truthful else 1):
                    member.write(bytes(1 << 20))
    return path


def test_an_npz_that_claims_more_than_it_holds(tmp_path):
    path = claimed(tmp_path / "x.npz", (10**10, 100, 100), truthful=False)
    refused(lambda: Npz(path=str(path), cache=str(tmp_path / "cache")).setup(), "is damaged")


@pytest.mark.slow
def test_a_zip_bomb_never_reaches_memory_or_the_disk(tmp_path, monkeypatch):
    path = claimed(tmp_path / "x.npz", (128, 1024, 1024), truthful=True)
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": (1 << 30) + (100 << 20)}))
    data = Npz(path=str(path), memory=0.1, cache=str(tmp_path / "cache"))
    refused(data.setup, r"takes 0\.1 GiB unpacked, but .* has 1\.1 GiB free: set dataset\.cache")
    assert not (tmp_path / "cache").exists()
