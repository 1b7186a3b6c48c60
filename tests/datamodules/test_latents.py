import logging
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.arrays.split import Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError
from datamodules.latents import Latents
from datamodules.progress import PATIENCE


class Made(ImageDataModule):
    source = "made"

    def load(self) -> dict[str, Split]:
        return {name: made(n) for name, n in (("train", 20), ("val", 9), ("test", 7))}


def made(n: int) -> Split:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 3, 4, 6), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 2, (n, 1, 4, 6), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(n) % 3, masks)


class Codec:
    """Means of 2 x 2 pixels, and a tenth of them as standard deviation; counts the images that it sees."""

    def __init__(self, fingerprint: str | None = "c0dec"):
        self.fingerprint, self.seen, self.devices = fingerprint, 0, []

    def to(self, device):
        self.devices.append(device)
        return self

    def moments(self, images):
        self.seen += len(images)
        mean = torch.nn.functional.avg_pool2d(images, 2)
        return torch.cat([mean, mean.abs() / 10], dim=1)

    def draw(self, moments, rng):
        mean, std = moments.chunk(2, dim=1)
        return mean if rng is None else mean + std * rng(mean.shape[1:])


def encoded(folder, codec=None, **options) -> Latents:
    return Made(**options).encoded(codec or Codec(), folder, "cpu")


def test_batches_hold_moments_and_all_else_as_it_was(tmp_path):
    data, codec, base = encoded(tmp_path), Codec(), Made()
    indices = torch.tensor([3, 0, 3])
    batch, pixels = data.split("val")[indices], base.split("val")[indices]
    assert torch.equal(batch["image"], codec.moments(pixels["image"])) and batch["image"].dtype is torch.float32
    assert batch.keys() == pixels.keys()
    assert all(torch.equal(batch[key], pixels[key]) for key in ("id", "label", "mask"))
    assert data.spec == base.spec and data.fingerprint() == base.fingerprint()
    assert set(data.load()) == {"train", "val", "test"} and data.source == "made"
    with pytest.raises(DataError, match="no split 'training'"):
        data.split("training")


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
@pytest.mark.parametrize("place", [None, (0, 1), (3, 0)])
def test_the_order_is_that_of_the_pixels(tmp_path, loader, place):
    options = {"seed": 5, "batch_size": 4, "validation_limit": 6}
    pixels, latents = Made(**options), encoded(tmp_path, **options)
    if place is not None:
        step, rank = place
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        where = {"global_step": step, "global_rank": rank, "world_size": 2, "accumulate_grad_batches": 1}
        pixels.trainer = latents.trainer = SimpleNamespace(strategy=strategy, **where)
    batches = [list(islice(getattr(data, loader)(), 12)) for data in (pixels, latents)]
    assert len(batches[0]) == len(batches[1]) > 0
    for theirs, ours in zip(*batches, strict=True):
        assert torch.equal(ours["id"], theirs["id"]) and torch.equal(ours["label"], theirs["label"])
        assert torch.equal(ours["image"], Codec().moments(theirs["image"]))


def test_what_training_needs_is_encoded_once_and_then_read(tmp_path):
    codec = Codec()
    data = encoded(tmp_path, codec)
    data.setup()
    assert (data.spec.shape, codec.seen) == ((3, 4, 6), 29) and len(list(tmp_path.iterdir())) == 2
    data.std()
    data.train_dataloader()
    data.val_dataloader()
    assert codec.seen == 29 and len(list(tmp_path.iterdir())) == 2
    again = Codec()
    images = encoded(tmp_path, again).split("train").images
    assert torch.equal(images, data.split("train").images) and again.seen == 0
    names = {f"latents1_c0dec_{data.fingerprint()}_{split}.safetensors" for split in ("train", "val")}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_another_codec_and_other_data_have_files_of_their_own(tmp_path):
    class Other(Made):
        def load(self):
            splits = super().load()
            return {**splits, "test": replace(splits["test"], labels=splits["test"].labels.flip(0))}

    encoded(tmp_path).split("train")
    for data in (encoded(tmp_path, Codec("0ther")), Other().encoded(Codec(), tmp_path, "cpu")):
        data.split("train")
        assert data.codec.seen == 20
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other name", "other shape", "other dtype", "fewer"])
def test_a_file_of_no_use_is_made_anew_with_a_warning(tmp_path, damage, caplog):
    expected = encoded(tmp_path).split("test").images.clone()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    replaced = {
        "cut": lambda: path.write_bytes(whole[:-5]),
        "empty": lambda: path.write_bytes(b""),
        "noise": lambda: path.write_bytes(bytes(range(200))),
        "other name": lambda: save_file({"latents": expected}, path),
        "other shape": lambda: save_file({"moments": expected[..., 0].contiguous()}, path),
        "other dtype": lambda: save_file({"moments": expected.half()}, path),
        "fewer": lambda: save_file({"moments": expected[:-1].contiguous()}, path),
    }
    replaced[damage]()
    codec = Codec()
    with caplog.at_level(logging.WARNING):
        images = encoded(tmp_path, codec).split("test").images
    assert codec.seen == 7 and torch.equal(images, expected) and torch.equal(load_file(path)["moments"], expected)
    (record,) = caplog.records
    assert str(path) in record.getMessage() and "made anew" in record.getMessage()
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    data = encoded(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        assert len(data.split("val")) == 9
    assert "could not be written" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_autoencoder_that_has_diverged_is_named(tmp_path, value):
    class Diverged(Codec):
        def moments(self, images):
            moments = super().moments(images)
            moments[[1, 4], 2, 0, 1] = value
            return moments

    data = encoded(tmp_path, Diverged())
    with pytest.raises(DataError, match=r"made, val: .* 2 of 9 images .* diverged") as caught:
        data.split("val")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_std_is_that_of_drawn_latents_to_two_digits(tmp_path):
    data = encoded(tmp_path)
    mean, std = data.split("train").images.double().chunk(2, dim=1)
    exact = (mean.var(correction=0) + (std**2).mean()).sqrt().item()
    # The noise adds a hundredth of the variance, and is known to a tenth of that.
    assert data.std() == pytest.approx(exact, rel=1e-3, abs=0.005) and data.std() == float(f"{data.std():.2g}")
    assert data.std() == encoded(tmp_path, seed=3, batch_size=7).std()


def test_std_sees_the_noise(tmp_path):
    class Loud(Codec):
        def moments(self, images):
            mean = super().moments(images)[:, :3]
            return torch.cat([0 * mean + 100, 0 * mean + 0.5], dim=1)

    # 720 values: std is known to 0.5 / sqrt(1440).
    assert encoded(tmp_path, Loud("a")).std() == pytest.approx(0.5, abs=4 * 0.5 / 720**0.5)

    class Flat(Codec):
        def moments(self, images):
            return 0 * super().moments(images)

    with pytest.raises(DataError, match="collapsed"):
        encoded(tmp_path, Flat("b")).std()


def test_a_codec_that_changes_nothing_needs_no_latents(tmp_path):
    base = Made()
    assert base.encoded(Codec(None), tmp_path, "cpu") is base


def test_large_images_are_encoded_few_at_a_time(tmp_path):
    class Large(Made):
        def load(self):
            images = torch.zeros(3, 1, 2048, 1024, dtype=torch.uint8)
            return dict.fromkeys(("train", "val", "test"), Split(images))

    sizes = []

    class Counting(Codec):
        def moments(self, images):
            sizes.append(len(images))
            return images[..., :2, :2]

    Large().encoded(Counting(), tmp_path, "cpu").split("val")
    assert sizes == [2, 1]


def test_a_bar_shows_when_it_takes_long(tmp_path, monkeypatch, capsys):
    encoded(tmp_path).split("train")
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 1000, int(PATIENCE) + 1))
    monkeypatch.setattr("datamodules.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    encoded(tmp_path, Codec("slow")).split("train")
    assert "encoding train" in capsys.readouterr().err
