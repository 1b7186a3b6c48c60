import gzip
import io
import json
import pickle
import tarfile
import threading
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from datamodules.arrays.order import epoch_order, windowed_order
from datamodules.arrays.split import SPLITS, Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError
from datamodules.fetch import md5_of
from datamodules.formats.shard_members import to_files
from datamodules.shards import Shards
from tests.datamodules.test_latents import Codec

COUNTS = {"train": 40, "val": 9, "test": 7}
SHAPES = {
    "colour": ((3, 6, 5), torch.uint8),
    "grey": ((1, 6, 5), torch.uint8),
    "five channels": ((5, 6, 5), torch.uint8),
    "16 bits": ((1, 6, 5), torch.int16),
    "16 bits in colour": ((3, 6, 5), torch.int16),
    "volumes": ((1, 4, 6, 5), torch.uint8),
    "volumes of 16 bits and two channels": ((2, 4, 6, 5), torch.int16),
}


class Made(ImageDataModule):
    """Random values over the whole range, whose kind has labels and masks or not."""

    def __init__(self, kind: str = "colour", labels: str | None = "classes", masks: bool = False, **options) -> None:
        super().__init__(**options)
        self.kind, self.labels, self.masks = kind, labels, masks
        self.class_names = ("a", "b", "c") if labels else None

    def load(self) -> dict[str, Split]:
        shape, dtype = SHAPES[self.kind]
        generator = torch.Generator().manual_seed(0)
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        splits = {}
        for name, n in COUNTS.items():
            images = torch.randint(least, most + 1, (n, *shape), generator=generator).to(dtype)
            labels = torch.arange(n) % 3
            if self.labels == "several":
                labels = torch.randint(0, 2, (n, 3), generator=generator)
            masks = torch.randint(0, 3, (n, 1, *shape[1:]), generator=generator).to(torch.uint8)
            splits[name] = Split(images, labels if self.labels else None, masks if self.masks else None)
        return splits


SHARD = 0.0172  # MB: eight samples of a colour image


def written(folder: Path, source: ImageDataModule, **options) -> Path:
    folder.mkdir(exist_ok=True)
    source.write_shards(folder, **{"shard_size": SHARD, **options})
    return folder


def opened(folder: Path, **options) -> Shards:
    return Shards(path=str(folder), cache=str(folder.parent / "cache"), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five shards of eight training samples."""
    return written(tmp_path_factory.mktemp("made") / "shards", Made())


@pytest.mark.parametrize(
    ("source", "encoding", "ending"),
    [
        (Made("colour"), "npy", "npy"),
        (Made("colour", masks=True), "png", "png"),
        (Made("grey", labels=None, masks=True), "npy", "npy"),
        (Made("grey", labels="several"), "png", "png"),
        (Made("five channels"), "png", "npy"),
        (Made("16 bits", masks=True), "png", "npy"),
        (Made("16 bits in colour"), "npy", "npy"),
        (Made("volumes", masks=True, labels="several"), "png", "npy"),
        (Made("volumes of 16 bits and two channels", masks=True), "npy", "npy"),
    ],
)
def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path, source, encoding, ending):
    data = opened(written(tmp_path / "x", source, encoding=encoding))
    assert data.spec == source.spec and data.std() == source.std() and data.fingerprint() == source.fingerprint()
    for name in SPLITS:
        split, given = data.split(name), source.split(name)
        assert split.stored and split.arrays().keys() == given.arrays().keys()
        for key, value in given.arrays().items():
            assert torch.equal(split.arrays()[key][:], value) and split.arrays()[key].dtype == value.dtype
    # Said by the index, and true of what is read.
    assert ImageDataModule.fingerprint(data) == source.fingerprint() and ImageDataModule.std(data) == source.std()
    assert data._files.endings[0] == ending
    whole = opened(tmp_path / "x", memory=1.0)
    assert not whole.split("train").stored and torch.equal(whole.split("val").images, source.split("val").images)


def test_any_reader_of_webdataset_reads_them(tmp_path):
    source = Made("colour", masks=True)
    for encoding in ("png", "npy"):
        folder, train = written(tmp_path / encoding, source, encoding=encoding), source.split("train")
        samples = list(
            webdataset.WebDataset([str(path) for path in sorted(folder.glob("train-*.tar"))], shardshuffle=False)
            .decode("rgb8")
            .to_tuple("__key__", encoding, "cls", f"mask.{encoding}")
        )
        keys = [int(key) for key, *_ in samples]
        assert sorted(keys) == list(range(40)) and keys != sorted(keys)
        for key, (_, image, label, mask) in zip(keys, samples, strict=True):
            assert np.array_equal(image, to_files(train.images[key : key + 1])[0]) and label == train.labels[key]
            assert np.array_equal(np.asarray(mask)[..., :1], to_files(train.masks[key : key + 1])[0])
    several = written(tmp_path / "several", Made("16 bits", labels="several"))
    first = next(iter(webdataset.WebDataset(str(several / "val-000000.tar"), shardshuffle=False).decode()))
    rows = Made("16 bits", labels="several").split("val")
    assert first["json"] == rows.labels[0].tolist() and first["npy"].dtype == np.uint16
    assert np.array_equal(first["npy"].astype(int)[..., 0] - 32768, rows.images[0, 0].numpy())


def test_the_same_data_are_the_same_bytes_and_another_seed_is_another_mix(tmp_path, folder):
    again = written(tmp_path / "again", Made())
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
    other = written(tmp_path / "other", Made(), seed=1)
    assert (other / "train-000000.tar").read_bytes() != (folder / "train-000000.tar").read_bytes()
    assert (other / "test-000000.tar").read_bytes() == (folder / "test-000000.tar").read_bytes()


def test_a_window_holds_all_samples_of_a_few_parts():
    sizes, parts = [3, 1, 4, 2, 5], [{0, 1, 2}, {3}, {4, 5, 6, 7}, {8, 9}, {10, 11, 12, 13, 14}]
    orders = [windowed_order(sizes, 2, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert sorted(order) == list(range(15))
        chosen = []
        while order:
            pair = [k for k, part in enumerate(parts) if part & {order[0]}]
            pair += [next(k for k, part in enumerate(parts) if i in part) for i in order if i not in parts[pair[0]]][:1]
            window = set().union(*(parts[k] for k in pair))
            assert set(order[: len(window)]) == window
            order, chosen = order[len(window) :], chosen + pair
        assert sorted(chosen) == [0, 1, 2, 3, 4]


def stream(data, steps: int, start: int = 0) -> list[int]:
    place = {"global_step": start, "global_rank": 0, "world_size": 1, "accumulate_grad_batches": 1}
    data.trainer = SimpleNamespace(**place, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    return [i for batch in islice(iter(data.train_dataloader()), steps) for i in batch["id"].tolist()]


def test_an_epoch_stays_in_a_window_and_goes_on_where_it_was_left(folder):
    whole = stream(opened(folder, window=2, batch_size=4), 10)
    assert sorted(whole) == list(range(40))
    # The second step is in the middle of the first window of 16 samples; what was not seen yet is what comes.
    rest = stream(opened(folder, window=2, batch_size=4), 8, start=2)
    assert rest == whole[8:] and sorted(whole[:8] + rest) == list(range(40))
    shard = {}
    for k, path in enumerate(sorted(folder.glob("train-*.tar"))):
        with tarfile.open(path) as file:
            shard |= {int(name.split(".")[0]): k for name in file.getnames()}
    assert [len({shard[i] for i in whole[a:b]}) for a, b in ((0, 16), (16, 32), (32, 40))] == [2, 2, 1]
    assert stream(opened(folder, window=2, batch_size=4), 20)[20:] != whole[20:]


def test_a_window_of_all_shards_is_the_order_of_every_source(folder):
    data, source = opened(folder, window=5, batch_size=8), Made(batch_size=8)
    assert torch.equal(data.order(40, 3, 7), epoch_order(40, 3, 7))
    for ours, theirs in zip(islice(iter(data.train_dataloader()), 12), source.train_dataloader(), strict=False):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("window", [1, 8])
def test_validation_looks_at_the_samples_that_the_source_looks_at(folder, window):
    ours = opened(folder, window=window, validation_limit=5).val_dataloader()
    for a, b in zip(ours, Made(validation_limit=5).val_dataloader(), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_part_of_a_split_stays_in_the_shards_and_another_process_can_have_it(folder):
    split, given = opened(folder).split("train"), Made().split("train").images
    split.images[0]
    part = pickle.loads(pickle.dumps(split)).only(torch.tensor([9, 4, 30])).only(torch.tensor([2, 0]))
    assert part.stored and torch.equal(part.images.load(), given[[30, 9]]) and part.labels.tolist() == [0, 0]
    assert torch.equal(torch.cat(list(split.images.blocks())), given)
    assert split.images[torch.tensor([], dtype=torch.int64)].shape == (0, 3, 6, 5)


def test_few_shards_are_open_at_a_time(tmp_path):
    data = opened(written(tmp_path / "x", Made(), shard_size=0.003), window=1)
    assert torch.equal(data.split("train").images[:], Made().split("train").images)
    assert len(data._files._open) == 16 < len(data._files.index.splits["train"])


def test_a_shard_is_looked_through_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    path = written(tmp_path / "x", Made())
    opened(path).split("test").images[0]
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.formats.shard_files.members_of", None)
        assert torch.equal(opened(path).split("test").images[3], Made().split("test").images[3])
    shard = path / "test-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"test-000000\.tar has other bytes than its checksum says"):
        opened(path).split("test").images[0]


def test_what_was_found_out_need_not_be_kept(tmp_path, folder):
    (tmp_path / "file").write_text("")
    data = Shards(path=str(folder), cache=str(tmp_path / "file" / "cache"))
    assert torch.equal(data.split("val").images[:], Made().split("val").images)


# Shards from a server.


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and writes down what is asked for."""

    def __init__(self, *arguments, asked: list[str], **options) -> None:
        self.asked = asked
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self.asked.append(self.path.rpartition("/")[2])
        super().do_GET()

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def served(folder, tmp_path):
    """The address of a copy of the shards, its folder, and the list of the files that were asked for."""
    copy, asked = tmp_path / "served", []
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, asked=asked, directory=str(copy)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", copy, asked
    server.shutdown()
    server.server_close()
    thread.join()


def tars(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*.tar"))


def test_remote_shards_are_downloaded_once_an_epoch_and_make_room_for_the_next(served, tmp_path, folder):
    address, _, asked = served
    one = (folder / "train-000000.tar").stat().st_size / 2**30
    options = {"cache": str(tmp_path / "cache"), "batch_size": 4, "window": 1}
    data = Shards(path=f"{address}/", cache_size=one * 1.01, **options)
    here = opened(folder, window=1, batch_size=4)
    assert data.spec == here.spec and asked == ["index.json", "samples.safetensors"], "no shard is needed for that"
    for batch, expected in zip(islice(iter(data.train_dataloader()), 10), here.train_dataloader(), strict=False):
        assert torch.equal(batch["image"], expected["image"]) and torch.equal(batch["id"], expected["id"])
        assert len(tars(tmp_path / "cache")) <= 2, "the one, and the one before it"
    assert sorted(asked[2:]) == [f"train-00000{k}.tar" for k in range(5)]
    # A large request is answered shard by shard too.
    assert torch.equal(data.split("train").images[:], Made().split("train").images)
    assert len(asked) <= 2 + 5 + 5 and len(tars(tmp_path / "cache")) <= 2


def test_the_shards_of_a_window_stay_whatever_the_cache_may_hold(served, tmp_path):
    address, _, asked = served
    data = Shards(path=address, cache=str(tmp_path / "cache"), cache_size=0.0, batch_size=4, window=3)
    assert sorted(stream(data, 10)) == list(range(40))
    assert len(asked) == 2 + 5 and len(tars(tmp_path / "cache")) == 4


def test_latents_of_remote_shards_take_each_of_them_once(served, tmp_path, folder):
    address, _, asked = served
    data = Shards(path=address, cache=str(tmp_path / "cache"), cache_size=0.0, window=1)
    moments = data.encoded(Codec(), tmp_path / "latents", "cpu").split("train").images
    assert torch.equal(moments, Made().encoded(Codec(), tmp_path / "other", "cpu").split("train").images)
    # One for the shape of an image, and one for each shard.
    assert len([name for name in asked if name.startswith("train")]) <= 6


def test_what_a_killed_download_has_left_is_cleared_away(served, tmp_path):
    address, _, _ = served
    data = Shards(path=address, cache=str(tmp_path / "cache"))
    data.setup()
    left = data._files.cache / f".train-000000.tar.{'0' * 32}.part"
    left.write_bytes(b"half")
    data.split("val").images[0]
    assert not left.exists()


def test_another_run_and_its_workers_find_what_was_downloaded(served, tmp_path):
    address, _, asked = served
    whole = stream(Shards(path=address, cache=str(tmp_path / "cache"), batch_size=4, window=2), 10)
    before = len(asked)
    again = Shards(path=address, cache=str(tmp_path / "cache"), batch_size=4, window=2, workers=2)
    assert stream(again, 10) == whole and asked[before:] == ["index.json"]


def test_a_failing_network_is_asked_again_and_then_named(served, tmp_path, monkeypatch):
    address, copy, _ = served
    data = Shards(path=address, cache=str(tmp_path / "cache"))
    data.setup()
    shard = copy / "val-000000.tar"
    whole = shard.read_bytes()
    shard.unlink()
    monkeypatch.setattr("datamodules.formats.shard_files.WAITS", (0.0, 0.0))
    monkeypatch.setattr("datamodules.formats.shard_files.time.sleep", lambda wait: shard.write_bytes(whole))
    assert len(data.split("val").images[:2]) == 2
    for spoilt in (whole[:1000], whole[:-1] + b"x"):
        (copy / "test-000000.tar").write_bytes(spoilt)
        with pytest.raises(DataError, match=r"test-000000\.tar is wanted .* could not be downloaded .*md5"):
            data.split("test").images[0]
    assert tars(tmp_path / "cache") == ["val-000000.tar"]
    with pytest.raises(DataError, match=r"nothing/index\.json cannot be downloaded \(File not found\)"):
        Shards(path=f"{address}/nothing").setup()
    with pytest.raises(DataError, match=r"index\.json cannot be downloaded \(.*\): check dataset\.path"):
        Shards(path="http://127.0.0.1:9").setup()


# What is refused.


def change(folder: Path, **values) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **values}))


def put(folder: Path, data: bytes) -> None:
    """Another test shard, to which size and checksum are fitted."""
    (folder / "test-000000.tar").write_bytes(data)
    splits = json.loads((folder / "index.json").read_text())["splits"]
    splits["test"][0] |= {"bytes": len(data), "md5": md5_of(folder / "test-000000.tar")}
    change(folder, splits=splits)


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        for member, data in members:
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return target.getvalue()


def members(folder: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(folder / "test-000000.tar") as file:
        return [(member, file.extractfile(member).read()) for member in file]


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def npy(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array, allow_pickle=True)
    return target.getvalue()


def claims(found: list[tuple[tarfile.TarInfo, bytes]], size: int) -> bytes:
    """A tar whose last member says that it has so many bytes."""
    data = bytearray(tar_of(found))
    start = sum(512 + -(-len(content) // 512) * 512 for _, content in found[:-1])
    member = found[-1][0]
    member.size = size
    data[start : start + 512] = member.tobuf(tarfile.GNU_FORMAT)
    return bytes(data)


IMAGE = np.zeros((6, 5, 3), np.uint8)
# From the members of the test shard (0.cls, 0.npy, 1.cls, ...) -> the bytes of another one.
TARS = {
    r"holds '/etc/000000000\.npy', which is not what": lambda m: tar_of([(named("/etc/000000000.npy"), b"x"), *m]),
    r"holds '\.\./000000000\.npy', which is no plain": lambda m: tar_of([(named("../000000000.npy"), b"x"), *m]),
    r"holds 'a/000000000\.npy', which is not what": lambda m: tar_of([(named("a/000000000.npy"), b"x"), *m]),
    r"holds '000000000\.npy', which is no plain": lambda m: tar_of(
        [
            (named("000000000.npy", tarfile.SYMTYPE, "/etc/passwd"), b""),
            *m,
        ]
    ),
    r"holds '000000000\.cls', which is no plain": lambda m: tar_of(
        [(named("000000000.cls", tarfile.CHRTYPE), b""), *m]
    ),
    r"holds '000000000\.json', which is no plain": lambda m: tar_of(
        [
            *m[:2],
            (named("000000000.json", tarfile.LNKTYPE, "000000000.npy"), b""),
            *m[2:],
        ]
    ),
    r"holds '000000000\.pyd', which is no plain": lambda m: tar_of([(named("000000000.pyd"), b"x"), *m]),
    r"holds '000000001\.cls', which is not what": lambda m: tar_of(m[2:4] + m[:2] + m[4:]),
    r"holds '000000000\.npy', which is not what": lambda m: tar_of([m[1], *m]),
    r"lacks npy of sample 000000006": lambda m: tar_of(m[:-1]),
    r"lacks npy of sample 000000005": lambda m: tar_of(m[:10]),
    r"is cut short in '000000006\.npy'": lambda m: claims(m, 1 << 40),
    r"is no tar file, or damaged|is cut short": lambda m: tar_of(m)[:2000],
    r"is no tar file, or damaged": lambda m: gzip.compress(tar_of(m)),
    r"sample 0 holds pickled objects, which are refused": lambda m: tar_of(
        [
            m[0],
            (m[1][0], npy(np.array([{}], object))),
            *m[2:],
        ]
    ),
    r"sample 0 holds uint8 of shape \(9, 6, 5, 3\), not": lambda m: tar_of(
        [
            m[0],
            (m[1][0], npy(np.zeros((9, 6, 5, 3), np.uint8))),
            *m[2:],
        ]
    ),
    r"sample 0 is cut short, or longer": lambda m: tar_of([m[0], (m[1][0], npy(IMAGE)[:-3]), *m[2:]]),
    r"sample 0 is damaged, or no npy file": lambda m: tar_of([m[0], (m[1][0], b"abc"), *m[2:]]),
    r"sample 0 has the byte order|sample 0 holds >?": lambda m: tar_of(
        [
            m[0],
            (m[1][0], npy(IMAGE.astype(">u2"))),
            *m[2:],
        ]
    ),
}


@pytest.fixture
def mine(tmp_path, folder):
    """A copy to spoil."""
    copy = tmp_path / "x"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def refused(folder: Path, match: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(DataError, match=match) as caught:
        opened(folder).split("test").images[:]
    assert "\n" not in str(caught.value)
    new = [path for path in folder.parent.rglob("*") if path not in before]
    assert all(path.suffix == ".npy" or path.name == ".lock" or path.is_dir() for path in new), "nothing is unpacked"


@pytest.mark.parametrize("match", TARS)
def test_a_shard_that_is_not_as_it_must_be_is_named(mine, match):
    put(mine, TARS[match](members(mine)))
    refused(mine, rf"test-000000\.tar.*({match})")


def huge(picture: bytes) -> bytes:
    """The same picture, whose head claims 30000 x 30000 pixels."""
    head = picture[12:16] + (30000).to_bytes(4, "big") * 2 + picture[24:29]
    return picture[:12] + head + zlib.crc32(head).to_bytes(4, "big") + picture[33:]


PICTURES = {
    "of many pixels": huge,
    "with two heads": lambda p: p[:33] + huge(p)[8:33] + p[33:],
    "with a wrong byte": lambda p: p[:50] + bytes([p[50] ^ 255]) + p[51:],
    "cut short": lambda p: p[:60],
    "empty": lambda p: b"x",
    "grey": lambda p: save(IMAGE[..., 0]),
    "another format": lambda p: save(IMAGE, "BMP"),
}


def save(array: np.ndarray, kind: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.fromarray(array).save(target, kind)
    return target.getvalue()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_is_not_as_it_must_be_is_named(tmp_path, kind):
    folder = written(tmp_path / "x", Made(), encoding="png")
    found = members(folder)
    put(folder, tar_of([found[0], (found[1][0], PICTURES[kind](found[1][1])), *found[2:]]))
    refused(folder, r"test-000000\.tar, sample 0 is no PNG of 5 x 6 pixels \(RGB\), or damaged")


def test_a_shard_that_is_cut_short_missing_or_of_another_set_is_named(mine):
    shard = mine / "test-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    refused(mine, r"test-000000\.tar has \d+ bytes, not \d+")
    shard.write_bytes(whole[:700] + b"x" + whole[701:])
    refused(mine, r"test-000000\.tar has other bytes than its checksum says")
    shard.unlink()
    refused(mine, r"test-000000\.tar is missing, but the index names it")
    (mine / "samples.safetensors").write_bytes(b"x")
    refused(mine, r"samples\.safetensors is not the file that the index means")
    (mine / "index.json").unlink()
    refused(mine, r"index\.json does not exist: give a folder of shards that was written to its end")


def first_shard(folder: Path, **values) -> None:
    splits = json.loads((folder / "index.json").read_text())["splits"]
    splits["test"][0] |= values
    change(folder, splits=splits)


INDICES = {
    "is of version 2, and this program reads version 1": lambda f: change(f, version=2),
    "is no index of shards": lambda f: (f / "index.json").write_text("[1, 2"),
    "is no index of shards, or": lambda f: (f / "index.json").write_text("[]"),
    r"no plain file name: '\.\./x\.tar'": lambda f: first_shard(f, name="../x.tar"),
    r"no plain file name: '/etc/passwd'": lambda f: first_shard(f, name="/etc/passwd"),
    r"no plain file name: 'a\\\\b\.tar'": lambda f: first_shard(f, name="a\\b.tar"),
    "no plain file name: None": lambda f: first_shard(f, name=None),
    "two files have one name": lambda f: first_shard(f, name="val-000000.tar"),
    "unexpected keyword": lambda f: first_shard(f, more=1),
    "holds no samples": lambda f: first_shard(f, samples=-1),
    "holds no bytes": lambda f: first_shard(f, bytes="1"),
    "has no md5": lambda f: first_shard(f, md5="x"),
    "the images are too large": lambda f: change(f, shape=[3, 100000, 100000]),
    "a side is not a whole number": lambda f: change(f, shape=[3, 0, 5]),
    "the shape of an image": lambda f: change(f, shape=[3]),
    "such images are no PNG": lambda f: change(f, shape=[5, 6, 5], image="png"),
    "an ending is not png or npy": lambda f: change(f, image="pickle"),
    "bits are not 8 or 16": lambda f: change(f, bits=32),
    "no standard deviation": lambda f: change(f, std=float("nan")),
    "no fingerprint": lambda f: change(f, fingerprint="../../x"),
    "masks without their number": lambda f: change(f, mask="npy"),
    "a split has no shards": lambda f: change(f, splits={"train": [], "val": [], "test": []}),
    "'test'": lambda f: change(f, splits={"train": [], "val": []}),
    "unexpected keyword argument 'more'": lambda f: change(f, more=1),
    "not one place for each of": lambda f: first_shard(f, samples=10**12),
    "train: the labels span 3 classes, but 2 are known": lambda f: change(f, class_names=["a", "b"]),
}


@pytest.mark.parametrize("match", INDICES)
def test_an_index_that_is_not_as_it_must_be_is_refused(mine, match):
    INDICES[match](mine)
    refused(mine, match)


def test_masks_beyond_the_known_classes_are_refused(tmp_path):
    folder = written(tmp_path / "x", Made(masks=True))
    change(folder, mask_classes=2)
    with pytest.raises(DataError, match="test: a mask holds class 2"):
        opened(folder).split("test").masks[:]


def test_places_must_be_a_permutation(mine):
    from safetensors.torch import load_file, save_file

    arrays = load_file(mine / "samples.safetensors")
    arrays["val_samples"][0] = 3
    save_file(arrays, mine / "samples.safetensors")
    about = json.loads((mine / "index.json").read_text())["samples"]
    path = mine / "samples.safetensors"
    change(mine, samples=about | {"bytes": path.stat().st_size, "md5": md5_of(path)})
    refused(mine, "val: two samples have one place")


def test_a_writing_that_is_cut_off_leaves_nothing_that_passes_for_a_set(mine, monkeypatch):
    class Full(webdataset.TarWriter):
        def write(self, sample):
            if sample["__key__"] == "000000005":
                raise OSError(28, "No space left on device")
            return super().write(sample)

    monkeypatch.setattr(webdataset, "TarWriter", Full)
    with pytest.raises(OSError, match="No space left"):
        written(mine, Made(), seed=1)
    refused(mine, "index.json does not exist")
    monkeypatch.undo()
    (mine / "mine.txt").write_text("stays")
    written(mine, Made(), shard_size=100)
    assert sorted(path.name for path in mine.glob("*.tar")) == [f"{name}-000000.tar" for name in sorted(COUNTS)]
    assert (mine / "mine.txt").exists() and torch.equal(opened(mine).split("val").images[:], Made().split("val").images)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"path": None}, "dataset=shards needs dataset.path=DIR"),
        ({"path": "s3://bucket/x"}, "give a folder, or an address that begins with http"),
        ({"path": "x", "window": 0}, "dataset.window=0: give 1 or more"),
        ({"path": "x", "cache_size": -1.0}, "dataset.cache_size=-1.0: give 0 or more"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(DataError, match=match):
        Shards(**options)
