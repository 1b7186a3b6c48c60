import hashlib
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datamodules.batch import DataError, DataSpec
from datamodules.fetch import fetch, md5_of
from datamodules.medmnist import MedMNIST, catalogue

CONF = Path(__file__).parents[2] / "conf" / "dataset"
FLAT = [name for name in catalogue() if not name.endswith("3d")]
PAYLOAD = bytes(range(256)) * 9000
MD5 = hashlib.md5(PAYLOAD).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAYLOAD)))
        self.end_headers()
        self.wfile.write({"/whole": PAYLOAD, "/cut": PAYLOAD[:1_500_000], "/other": PAYLOAD[::-1]}[self.path])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_whole_download_appears_under_its_name(server, tmp_path):
    path = tmp_path / "folder" / "file.npz"
    fetch(f"{server}/whole", path, MD5)
    assert path.read_bytes() == PAYLOAD and os.listdir(path.parent) == ["file.npz"]


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("cut", "cut short, 1500000 of 2304000 bytes"),
        ("other", f"md5 {hashlib.md5(PAYLOAD[::-1]).hexdigest()}"),
        ("absent", "Not Found"),
    ],
)
def test_a_failed_download_leaves_nothing_and_says_where_to_get_the_file(server, tmp_path, page, reason):
    path = tmp_path / "file.npz"
    with pytest.raises(DataError) as caught:
        fetch(f"{server}/{page}", path, MD5)
    message = str(caught.value)
    assert "\n" not in message
    for part in (reason, str(path), MD5, f"{server}/{page}"):
        assert part in message
    assert os.listdir(tmp_path) == []


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server}/whole", tmp_path / "file.npz", MD5)
    assert os.listdir(tmp_path) == []


def test_without_a_network_one_line_names_file_md5_address_and_place(tmp_path, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    data = MedMNIST("bloodmnist", root=str(tmp_path))
    monkeypatch.setattr(data, "address", f"http://127.0.0.1:{port}/bloodmnist.npz")
    with pytest.raises(DataError, match="refused") as caught:
        data.setup()
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        str(tmp_path / "bloodmnist.npz"),
        catalogue()["bloodmnist"]["MD5"],
        data.address,
        "put it there",
    ):
        assert part in message


def test_downloads_can_be_switched_off(tmp_path):
    with pytest.raises(DataError, match=r"dataset.download is off: get https://zenodo.org/.*breastmnist.npz"):
        MedMNIST("breastmnist", root=str(tmp_path), download=False).setup()


def test_an_absent_set_is_downloaded_and_read(server, shared_data, tmp_path, monkeypatch):
    payload = shared_data("medmnist/breastmnist.npz").read_bytes()
    monkeypatch.setattr(sys.modules[__name__], "PAYLOAD", payload)
    data = MedMNIST("breastmnist", root=str(tmp_path))
    monkeypatch.setattr(data, "address", f"{server}/whole")
    assert len(data.split("train")) == 546 and md5_of(data.path) == catalogue()["breastmnist"]["MD5"]


def test_the_official_breast_file(shared_data):
    path = shared_data("medmnist/breastmnist.npz")
    data = MedMNIST("breastmnist", root=str(path.parent))
    assert data.spec == DataSpec((1, 28, 28), 2, ("malignant", "normal, benign"))
    assert data.split("train").labels.bincount().tolist() == [147, 399]
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [546, 78, 156]
    stored = np.load(path)["test_images"]
    assert np.array_equal(data.split("test").images[:, 0].numpy(), stored)


def test_the_official_adrenal_file_is_three_dimensional(shared_data):
    data = MedMNIST("adrenalmnist3d", root=str(shared_data("medmnist/adrenalmnist3d.npz").parent))
    assert data.spec.shape == (1, 28, 28, 28) and data.spec.classes == 2
    batch = data.split("val")[torch.arange(3)]
    assert batch["image"].shape == (3, 1, 28, 28, 28) and batch["image"].unique().tolist() == [-1, 1]


def test_a_file_of_another_md5_is_refused(shared_data, tmp_path):
    shutil.copy(shared_data("medmnist/adrenalmnist3d.npz"), tmp_path / "breastmnist.npz")
    with pytest.raises(DataError) as caught:
        MedMNIST("breastmnist", root=str(tmp_path)).setup()
    for part in (catalogue()["breastmnist"]["MD5"], catalogue()["adrenalmnist3d"]["MD5"], "dataset=npz"):
        assert part in str(caught.value)


def test_sizes_and_names_are_checked(tmp_path):
    assert MedMNIST("pathmnist", size=64, root=str(tmp_path)).path == tmp_path / "pathmnist_64.npz"
    with pytest.raises(DataError, match=r"choose dataset.size from 28, 64, 128, 224"):
        MedMNIST("pathmnist", size=32)
    with pytest.raises(DataError, match="did you mean bloodmnist"):
        MedMNIST("bloodmist")


def test_several_labels_at_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    made = {}
    for name, n in {"train": 8, "val": 3, "test": 4}.items():
        made[f"{name}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        made[f"{name}_labels"] = rng.integers(0, 2, (n, 14), dtype=np.uint8)
    np.savez(tmp_path / "chestmnist.npz", **made)
    data = MedMNIST("chestmnist", root=str(tmp_path))
    monkeypatch.setattr(data, "md5", md5_of(data.path))
    assert data.spec.multi_label and data.spec.classes == len(data.spec.class_names) == 14
    assert np.array_equal(data.split("train")[torch.arange(8)]["label"].numpy(), made["train_labels"])


@pytest.mark.parametrize("name", catalogue())
def test_each_set_is_a_choice_of_its_own(name, tmp_path):
    keys = {
        **yaml.safe_load((CONF / "medmnist.yaml").read_text()),
        **yaml.safe_load((CONF / f"{name}.yaml").read_text()),
    }
    assert keys.pop("defaults") == ["medmnist"]
    assert keys.pop("_target_") == "datamodules.medmnist.MedMNIST" and keys["root"] == "~/.medmnist"
    data = MedMNIST(**{**keys, "root": str(tmp_path)})
    assert data.source == name and data.path == tmp_path / f"{name}.npz"
    assert len(data.class_names) == len(catalogue()[name]["label"])


def test_there_are_twelve_flat_sets():
    assert len(FLAT) == 12


def test_the_catalogue_is_read_without_importing_the_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "medmnist", raising=False)
    catalogue.cache_clear()
    assert "bloodmnist" in catalogue() and "medmnist" not in sys.modules
