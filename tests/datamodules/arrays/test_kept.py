"""dataset.only: the samples of some classes, without their labels."""

from dataclasses import replace

import pytest
import torch

from datamodules.arrays.order import epoch_order
from datamodules.batch import DataError, DataSpec
from datamodules.npz import Npz
from datamodules.shards import Shards
from tests.datamodules.sources import folder_on_disk, npz_on_disk
from tests.datamodules.test_base import Made, splits_of


def test_only_some_classes_are_kept_in_all_splits_without_labels():
    whole, some = Made(), Made(only=[0, 2])
    assert some.spec == DataSpec((3, 5, 4), classes=None, mask_classes=2)
    for name in ("train", "val", "test"):
        split, rows = whole.split(name), whole.split(name).labels != 1
        assert torch.equal(some.split(name).images, split.images[rows])
        assert torch.equal(some.split(name).masks, split.masks[rows])
        assert some.split(name).labels is None
    pixels = some.split("train").images.double() / 127.5 - 1
    assert some.std() == pytest.approx(pixels.std(correction=0).item(), rel=1e-12)
    assert some.fingerprint() != whole.fingerprint() == Made(only=None).fingerprint()
    assert Made(only=2).fingerprint() != some.fingerprint() == Made(only=[2, 0]).fingerprint()


def test_classes_have_names_too():
    named = Made(only="b")
    named.class_names = ("a", "b", "c")
    assert torch.equal(named.split("val").images, Made(only=[1]).split("val").images)


def test_of_several_labels_only_rows_without_others_are_kept():
    rows = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]])
    splits = {
        name: replace(split, labels=rows[torch.arange(len(split)) % 4]) for name, split in splits_of(20, 8, 8).items()
    }
    kept = {only: Made(splits, only=list(only)).split("val").images for only in ((), (0,), (0, 1))}
    images = splits["val"].images
    assert torch.equal(kept[()], images[1::4])
    assert torch.equal(kept[0,], images[[0, 1, 4, 5]])
    assert torch.equal(kept[0, 1], images[[0, 1, 2, 4, 5, 6]])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": [3]}, "no class 3; it has 0, 1, 2"),
        ({"only": ["x"]}, "no class x"),
        ({"only": [-1]}, "no class -1"),
        ({"only": []}, "leaves nothing"),
    ],
)
def test_classes_that_are_not_there_are_refused(options, said):
    with pytest.raises(DataError, match=said):
        Made(**options).setup()


def test_data_without_labels_have_nothing_to_choose_by():
    splits = {name: replace(split, labels=None) for name, split in splits_of().items()}
    with pytest.raises(DataError, match="no labels"):
        Made(splits, only=[0]).setup()


def test_stored_data_stay_in_their_file(tmp_path):
    keys = npz_on_disk(tmp_path)
    keys.pop("dataset")
    whole, some = Npz(**keys), Npz(**keys, only=[1])
    assert some.split("train").stored
    rows = whole.split("train").labels == 1
    assert torch.equal(some.split("train").images.load(), whole.split("train").images.load()[rows])
    in_memory = Npz(**keys | {"memory": 4.0}, only=[1])
    assert some.std() == in_memory.std() and some.fingerprint() == in_memory.fingerprint()


def test_names_and_facts_of_files_are_those_of_the_kept(tmp_path):
    from datamodules.folder import Folder

    keys = folder_on_disk(tmp_path)
    keys.pop("dataset")
    whole = Folder(**keys)
    facts = whole.std(), whole.fingerprint()
    some = Folder(**keys, only=["a"])
    assert some.names["train"] == [name for name in whole.names["train"] if name.startswith("a/")]
    assert {name: len(names) for name, names in some.names.items()} == {
        name: len(some.split(name)) for name in some.names
    }
    assert (some.std(), some.fingerprint()) != facts == (Folder(**keys).std(), Folder(**keys).fingerprint())


def test_of_shards_an_epoch_visits_each_of_the_kept_once(tmp_path):
    keys = npz_on_disk(tmp_path)
    (tmp_path / "shards").mkdir()
    whole = Npz(path=keys["path"])
    whole.write_shards(tmp_path / "shards", shard_size=0.002)
    some = Npz(path=keys["path"], only=[0])
    for window in (2, 1000):
        shards = Shards(path=str(tmp_path / "shards"), cache=str(tmp_path / "cache"), window=window, only=[0])
        n = len(shards.split("train"))
        order = shards.order(n, 0, 3)
        assert sorted(order.tolist()) == list(range(n)) and n == len(some.split("train"))
        assert torch.equal(order, epoch_order(n, 0, 3)) == (window == 1000)
        images = shards.split("train").images[order[:4]]
        assert torch.equal(images, some.split("train").images[order[:4]])
    assert shards.std() == some.std() and shards.fingerprint() == some.fingerprint()
