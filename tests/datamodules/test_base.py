from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from datamodules.arrays.examine import examine
from datamodules.arrays.order import EndlessBatches, epoch_order
from datamodules.arrays.split import Split
from datamodules.base import ImageDataModule
from datamodules.batch import DataError, DataSpec


def make_split(n: int, shape=(3, 5, 4), classes: int = 3, shift: int = 0) -> Split:
    generator = torch.Generator().manual_seed(n + shift)
    images = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, 2, (n, 1, *shape[1:]), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(n) % classes, masks)


class Made(ImageDataModule):
    source = "made"

    def __init__(self, splits: dict[str, Split] | None = None, **options: int) -> None:
        super().__init__(**options)
        self.made, self.loads = splits or splits_of(), 0

    def load(self) -> dict[str, Split]:
        self.loads += 1
        return self.made


def splits_of(train=20, val=9, test=7) -> dict[str, Split]:
    return {"train": make_split(train), "val": make_split(val), "test": make_split(test)}


def test_a_batch_holds_what_the_split_holds_at_the_indices():
    split = make_split(6)
    indices = torch.tensor([4, 0, 4])
    batch = split[indices]
    assert batch["image"].dtype is torch.float32 and batch["label"].dtype is torch.int64
    assert torch.equal(((batch["image"] + 1) * 127.5).round().to(torch.uint8), split.images[[4, 0, 4]])
    assert batch["label"].tolist() == [1, 0, 1]
    assert batch["mask"].dtype is torch.float32 and torch.equal(batch["mask"], split.masks[[4, 0, 4]].float())
    assert torch.equal(batch["id"], indices)


def test_black_is_minus_one_and_white_is_one():
    batch = Split(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))[torch.arange(2)]
    assert batch["image"].flatten().tolist() == [-1.0, 1.0]
    assert set(batch) == {"image", "id"}


def test_a_data_loader_can_serve_a_split_without_collation():
    split = make_split(10)
    loader = torch.utils.data.DataLoader(split, batch_size=None, sampler=EndlessBatches(10, 4, seed=0))
    batch = next(iter(loader))
    assert torch.equal(batch["id"], epoch_order(10, 0, 0)[:4]) and batch["image"].shape == (4, 3, 5, 4)


def test_several_labels_become_float_rows():
    rows = torch.tensor([[1, 0], [1, 1], [0, 0]])
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), rows)
    assert examine("x", dict.fromkeys(("train", "val", "test"), split)) == DataSpec(
        (1, 2, 2), 2, None, multi_label=True
    )
    label = split[torch.tensor([1, 0])]["label"]
    assert label.dtype is torch.float32 and label.tolist() == [[1, 1], [1, 0]]


def test_data_are_loaded_once():
    data = Made()
    assert data.spec == DataSpec((3, 5, 4), classes=3, mask_classes=2)
    data.setup("fit")
    data.setup("test")
    assert data.loads == 1 and len(data.split("val")) == 9


def test_std_is_that_of_the_training_images():
    data = Made()
    expected = (data.split("train").images.double() / 127.5 - 1).std(correction=0)
    assert data.std() == pytest.approx(expected.item(), rel=1e-12)


def test_flat_images_have_no_std():
    flat = Split(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8))
    with pytest.raises(DataError, match="same value"):
        Made(dict.fromkeys(("train", "val", "test"), flat)).std()


def test_fingerprint_tells_data_apart_and_ignores_the_seed():
    original = Made(seed=1).fingerprint()
    assert original == Made(seed=2).fingerprint() and len(original) == 16
    others = []
    for name in ("train", "val", "test"):
        for field in ("images", "labels", "masks"):
            splits = splits_of()
            value = getattr(splits[name], field).clone()
            value.view(-1)[:2] = torch.tensor([1, 0]) if field == "labels" else value.view(-1)[:2] ^ 1
            others.append(Made({**splits, name: replace(splits[name], **{field: value})}).fingerprint())
    assert len({original, *others}) == 10


def test_validation_is_a_fixed_selection_and_testing_is_everything():
    seen = [
        torch.cat([b["id"] for b in Made(seed=s, batch_size=4, validation_limit=6).val_dataloader()]) for s in (0, 1)
    ]
    assert torch.equal(seen[0], seen[1]) and len(seen[0].unique()) == 6 and seen[0].tolist() != [0, 1, 2, 3, 4, 5]
    loader = Made(batch_size=4).test_dataloader()
    assert len(loader) == 2 and [b["id"].tolist() for b in loader] == [[0, 1, 2, 3], [4, 5, 6]]
    everything = torch.cat([batch["id"] for batch in Made(validation_limit=1024).val_dataloader()])
    assert torch.equal(everything.sort().values, torch.arange(9))


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_processes_validate_everything_once_in_the_same_number_of_steps(count):
    """Three batches of 4, 4 and 1; a sample of id -1 fills up the round of those that have none left."""
    found = []
    for rank in range(count):
        data = Made(batch_size=4)
        root = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=count, strategy=root)
        found.append([batch["id"].tolist() for batch in data.val_dataloader()])
    assert {len(batches) for batches in found} == {-(-3 // count)}
    turns = [batches[k] for k in range(len(found[0])) for batches in found]
    assert turns[:3] == [batch["id"].tolist() for batch in Made(batch_size=4).val_dataloader()]
    assert turns[3:] == [[-1]] * (len(turns) - 3)


class Recorder(pl.LightningModule):
    """Trains one weight, and writes down the samples that it saw and where they were."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch, index):
        self.seen.append(batch["id"].tolist())
        return (self.weight * batch["image"]).square().mean()

    def validation_step(self, batch, index):
        self.validated += batch["id"].tolist()
        self.log("loss", batch["image"].mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(max_steps: int, tmp_path, resume=None, **options) -> Recorder:
    module = Recorder()
    trainer = pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        **options,
    )
    trainer.fit(module, datamodule=Made(batch_size=6, validation_limit=5), ckpt_path=resume)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return module


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_the_stream_and_resumes_in_mid_epoch(tmp_path):
    stream = [batch.tolist() for batch in islice(EndlessBatches(20, 6, seed=0), 7)]
    module = fit(2, tmp_path)
    assert module.seen == stream[:2]
    assert module.validated == epoch_order(9, 0, 0)[:5].tolist()
    assert fit(7, tmp_path, resume=tmp_path / "last.ckpt").seen == stream[2:]


@pytest.mark.filterwarnings("ignore")
def test_accumulated_batches_share_the_step(tmp_path):
    stream = EndlessBatches(20, 6, seed=0, accumulate=2)
    assert fit(2, tmp_path, accumulate_grad_batches=2).seen == [batch.tolist() for batch in islice(stream, 4)]


def image_like(split: Split, dtype=torch.uint8, shape=(3, 5, 4)) -> Split:
    return replace(split, images=torch.zeros(len(split), *shape).to(dtype))


BAD = {
    "made, test: images are float32, but uint8": lambda s: {"test": image_like(s["test"], torch.float32)},
    "made, val: images of shape \\(3, 5, 5\\), but in train \\(3, 5, 4\\)": lambda s: {
        "val": image_like(s["val"], shape=(3, 5, 5))
    },
    "made, train: images of shape \\(20, 5\\) are neither": lambda s: {"train": image_like(s["train"], shape=(5,))},
    "made, val: the split is empty": lambda s: {"val": s["val"].take(torch.arange(0))},
    "made, test: 7 images but labels of shape \\(6,\\)": lambda s: {
        "test": replace(s["test"], labels=s["val"].labels[:6])
    },
    "made, test: label 3 is out of range": lambda s: {"test": replace(s["test"], labels=s["test"].labels + 1)},
    "made, val: label -1 is out of range": lambda s: {"val": replace(s["val"], labels=s["val"].labels - 1)},
    "made, train: the 3 classes are numbered 0 to 4": lambda s: {
        "train": replace(s["train"], labels=s["train"].labels * 2)
    },
    "made, train: the 3 classes are numbered -1 to 1": lambda s: {
        "train": replace(s["train"], labels=s["train"].labels - 1)
    },
    "made, val: labels in one split and none in another": lambda s: {"val": replace(s["val"], labels=None)},
    "made, test: labels are float64": lambda s: {"test": replace(s["test"], labels=s["test"].labels.double())},
    "made, train: labels of shape \\(20, 1, 1\\)": lambda s: {
        "train": replace(s["train"], labels=torch.zeros(20, 1, 1).long())
    },
    "made, train: a row of 2 labels": lambda s: {"train": replace(s["train"], labels=torch.full((20, 2), 2))},
    "made, test: masks in one split and none in another": lambda s: {"test": replace(s["test"], masks=None)},
    "made, test: masks of shape": lambda s: {"test": replace(s["test"], masks=s["test"].masks[:, :, 1:])},
    "made, test: the masks hold class 255, but those of train 1": lambda s: {
        "test": replace(s["test"], masks=s["test"].masks * 255)
    },
    "made, train: the masks hold values up to 255": lambda s: {
        name: replace(split, masks=split.masks * 255) for name, split in s.items()
    },
    "made, val: masks are int64": lambda s: {"val": replace(s["val"], masks=s["val"].masks.long())},
    "made, val: images are int16, but in train uint8": lambda s: {"val": image_like(s["val"], torch.int16)},
}


@pytest.mark.parametrize("message", BAD)
def test_each_broken_rule_is_named_in_one_line(message):
    splits = splits_of()
    with pytest.raises(DataError, match=message) as caught:
        Made({**splits, **BAD[message](splits)}).setup()
    assert "\n" not in str(caught.value)


def test_missing_and_unknown_splits_are_named():
    splits = splits_of()
    del splits["val"]
    with pytest.raises(DataError, match="no split 'val'"):
        Made(splits).setup()
    with pytest.raises(DataError, match="choose one of train, val, test"):
        Made().split("training")


def test_class_names_must_be_as_many_as_the_classes():
    assert examine("x", splits_of(), ("a", "b", "c")).class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="span 3 classes, but 4 are known"):
        examine("x", splits_of(), ("a", "b", "c", "d"))


@pytest.mark.parametrize("option", ["batch_size", "validation_limit"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(DataError, match=f"{option}=0"):
        Made(**{option: 0})
