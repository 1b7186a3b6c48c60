"""A small data set of every kind, from files that are written in a folder: name -> function of the folder."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.npz import Npz
from datamodules.sprites import IMAGES, LABELS
from tests.datamodules.pictures import class_folders, noise, save
from tests.datamodules.scanner import body, write_nifti, write_series


def npz(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 26), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez(folder / "x.npz", **arrays)
    return {"dataset": "npz", "path": str(folder / "x.npz"), "cache": str(folder / "cache")}


def npz_on_disk(folder: Path) -> dict[str, Any]:
    return npz(folder) | {"memory": 0.0}


def class_folder(folder: Path) -> dict[str, Any]:
    class_folders(folder / "x", 32)
    return {"dataset": "folder", "path": str(folder / "x"), "size": 16, "cache": str(folder / "cache")}


def folder_on_disk(folder: Path) -> dict[str, Any]:
    return class_folder(folder) | {"memory": 0.0}


def csv(folder: Path) -> dict[str, Any]:
    x = class_folders(folder / "x", 32)
    (x / "t.csv").write_text("path,label\n" + "".join(f"{'ab'[i % 2]}/{i}.png,{i % 2}\n" for i in range(32)))
    return {"dataset": "csv", "path": str(x / "t.csv"), "size": 16, "cache": str(folder / "cache")}


def masks(folder: Path) -> dict[str, Any]:
    for i in range(32):
        save(folder / "x" / "images" / f"{i}.png", noise(i))
        save(folder / "x" / "masks" / f"{i}.png", np.uint8(255) * (noise(i, (20, 24)) > 99))
    return {"dataset": "masks", "path": str(folder / "x"), "size": 16, "cache": str(folder / "cache")}


def sprites(folder: Path) -> dict[str, Any]:
    np.save(folder / IMAGES, noise(0, (40, 16, 16, 3)))
    np.save(folder / LABELS, np.eye(5)[np.arange(40) % 5])
    return {"dataset": "sprites", "path": str(folder)}


def mnist(folder: Path) -> dict[str, Any]:
    for part, n in (("train", 60), ("t10k", 20)):
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 28, 28)
        images, labels = noise(n, (n, 28, 28)), np.arange(n, dtype=np.uint8) % 10
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = struct.pack(">BBBBI", 0, 0, 8, 1, n)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))
    return {"dataset": "mnist", "root": str(folder), "download": False}


def dicom(folder: Path) -> dict[str, Any]:
    for patient in range(5):
        write_series(
            folder / "x" / f"scan{patient}", body(seed=patient), series=f"1.2.{patient}", PatientID=str(patient)
        )
    return {"dataset": "dicom", "path": str(folder / "x"), "size": 16, "cache": str(folder / "cache")}


def nifti(folder: Path) -> dict[str, Any]:
    for patient in range(5):
        write_nifti(folder / "x" / f"{patient}.nii.gz", body((18, 16, 16), seed=patient).astype(np.float32))
    keys = {"output": "patches", "size": 8, "cache": str(folder / "cache"), "memory": 0.0}
    return {"dataset": "nifti", "path": str(folder / "x")} | keys


def shards(folder: Path) -> dict[str, Any]:
    keys = npz(folder)
    (folder / "shards").mkdir()
    Npz(path=keys["path"]).write_shards(folder / "shards", shard_size=0.02)
    return {"dataset": "shards", "path": str(folder / "shards"), "window": 2, "cache": str(folder / "cache")}


def nothing(dataset: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"dataset": dataset}


SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "digits": nothing("digits"),
    "tissue": nothing("tissue"),
    "npz": npz,
    "npz on disk": npz_on_disk,
    "folder": class_folder,
    "folder on disk": folder_on_disk,
    "csv": csv,
    "masks": masks,
    "dicom": dicom,
    "nifti patches on disk": nifti,
    "sprites": sprites,
    "mnist": mnist,
    "shards": shards,
    "folder on disk, one class": lambda folder: folder_on_disk(folder) | {"only": ["a"]},
    "shards, one class": lambda folder: shards(folder) | {"only": [1]},
}
