"""What `python -m diffusion shard` writes, and training on it."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.digits import Digits
from datamodules.shards import Shards
from tests.commands import diffusion, refusal
from tests.training import assert_same_run, run_training, state

PLAN = [
    "augmentation=none",
    "trainer.validate_every_n_steps=2",
    "trainer.log_every_n_steps=2",
    "callbacks.previews.every_n_steps=4",
    "callbacks.learning_rate.final=1",
    "callbacks.learning_rate.warmup_steps=100",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The digits in shards of 100."""
    out = tmp_path_factory.mktemp("written") / "shards"
    diffusion("shard", "dataset=digits", f"out={out}", "shard_size=0.205")
    return out


def test_it_writes_shards_figures_and_a_picture(shards):
    source = Digits()
    metrics = json.loads((shards / "metrics.json").read_text())
    samples = {name: len(source.split(name)) for name in ("train", "val", "test")}
    assert metrics["samples"] == samples and metrics["n"] == sum(samples.values())
    assert metrics["fingerprint"] == source.fingerprint() and metrics["images_per_second"] > 0
    tars = sorted(shards.glob("*.tar"))
    assert metrics["bytes"] == sum(path.stat().st_size for path in tars)
    assert sum(metrics["shards"].values()) == len(tars) and metrics["shards"]["train"] > 8
    with (shards / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["shard"] for row in rows) == [path.name for path in tars]
    assert sum(int(row["samples"]) for row in rows if row["split"] == "train") == samples["train"]
    picture = np.asarray(Image.open(shards / "samples.png").convert("L"))
    assert min(picture.shape) > 100 and picture.std() > 20


def test_the_shards_hold_the_source(shards, tmp_path):
    data, source = Shards(path=str(shards), cache=str(tmp_path)), Digits()
    assert data.spec == source.spec
    for name in ("train", "val", "test"):
        for key, value in source.split(name).arrays().items():
            assert torch.equal(data.split(name).arrays()[key][:], value)


def test_training_on_shards_goes_on_where_it_was_stopped_and_samples(shards, tmp_path):
    words = [
        *PLAN,
        "dataset=shards",
        f"dataset.path={shards}",
        f"dataset.cache={tmp_path / 'cache'}",
        "dataset.window=2",
    ]
    whole = run_training(tmp_path / "whole", *words, "trainer.max_steps=4")
    run_training(tmp_path / "halves", *words, "trainer.max_steps=2")
    assert_same_run(run_training(tmp_path / "halves", *words, "trainer.max_steps=4", "dataset.cache_size=1.0"), whole)
    diffusion("sample", f"run={whole}", "n=4", "grid.steps=2", "device=cpu")
    assert np.load(whole / "sample" / "samples.npz")["images"].shape == (4, 8, 8, 1)


def test_with_a_window_of_all_shards_training_is_that_on_the_source(shards, tmp_path):
    words = ["dataset=shards", f"dataset.path={shards}", f"dataset.cache={tmp_path / 'cache'}", "dataset.window=99"]
    plan = [*PLAN, "trainer.max_steps=2"]
    ours, theirs = (state(run_training(tmp_path / name, *plan, *w)) for name, w in (("a", words), ("b", [])))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_data_of_a_run_and_a_part_of_them(tmp_path):
    run = run_training(tmp_path, *PLAN, "trainer.max_steps=1")
    diffusion("shard", f"run={run}", "n=60", "encoding=png")
    data, train = Shards(path=str(run / "shard"), cache=str(tmp_path)), Digits().split("train")
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [60, 60, 60]
    found = data.split("train")
    assert all((train.images == image).flatten(1).all(1).any() for image in found.images[:])
    assert data.fingerprint() != Digits().fingerprint() and data.spec == Digits().spec
    assert json.loads((run / "shard" / "metrics.json").read_text())["encoding"] == "png"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "shard needs dataset=NAME"),
        (["dataset=digits"], "shard needs out=DIR"),
        (["dataset=digits", "out=x", "encoding=jpg"], "encoding=jpg: use npy, or png"),
        (["dataset=digits", "out=x", "n=0"], "n=0"),
        (["dataset=digits", "out=x", "n=5"], "n=5 are too few: "),
        (["dataset=digits", "out=x", "shard_size=0"], "shard_size=0"),
        (["dataset=digitz", "out=x"], "did you mean digits"),
        (["dataset=shards", "out=x"], "dataset=shards needs dataset.path=DIR"),
    ],
)
def test_what_it_needs_is_said(tmp_path, monkeypatch, capfd, words, line):
    monkeypatch.chdir(tmp_path)
    assert line in refusal(capfd, diffusion, "shard", *words)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_nothing_is_written_over(shards, tmp_path, capfd):
    line = refusal(capfd, diffusion, "shard", "dataset=digits", f"out={shards}")
    assert "holds results already" in line
    own = ["dataset=shards", f"dataset.path={shards}", f"dataset.cache={tmp_path}", f"out={shards}", "overwrite=true"]
    assert "is where the data themselves lie" in refusal(capfd, diffusion, "shard", *own)
    assert (shards / "index.json").exists()


def test_without_webdataset_the_extra_is_named(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    line = refusal(capfd, diffusion, "shard", "dataset=digits", f"out={tmp_path / 'x'}")
    assert 'python -m pip install -e ".[shards]"' in line
