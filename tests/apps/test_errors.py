"""What train.py refuses: one line that says what is wrong and what to do, status 2, and nothing written."""

import os
from unittest import mock

import numpy as np
import pytest

from tests.commands import refusal, train_py
from tests.training import SMALL

pytestmark = pytest.mark.slow

LIMIT = "trainer.max_steps=2"


@pytest.fixture
def refused(capfd, tmp_path, monkeypatch):
    """A function from overrides to the line that refuses them; it leaves no file behind."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def call(*overrides: str) -> str:
        line = refusal(capfd, train_py, *SMALL, LIMIT, f"runs_dir={tmp_path}/runs", "run_id=run", *overrides)
        assert not (tmp_path / "runs").exists() and not list((tmp_path / "cwd").iterdir())
        return line

    return call


NAMES = [
    ("experiment=nope", "experiment=nope: there is no such choice", "tissue_pixel"),
    ("experiment=digit_pixel", "did you mean digits_pixel"),
    ("scheduler=cosin", "did you mean cosine?"),
    ("logger=wandb_ofline", "did you mean wandb_offline"),
    ("dataset=bloodmist", "did you mean bloodmnist"),
    ("sampler=plms", "sampler=plms: there is no such choice", "heun"),
    ("network.chanels=8", "network.chanels: there is no such key; did you mean network.channels or"),
    ("trainer.max_step=3", "did you mean trainer.max_steps"),
    ("seeed=1", "seeed: there is no such key; did you mean seed?"),
    ("max_steps=5", "did you mean trainer.max_steps?"),
    ("lr=0.1", "did you mean optimizer.lr?"),
    ("nothing_like_it=1", "nothing_like_it: there is no such key; there are: experiment, seed"),
    ("dataset.size=30", "dataset.size: there is no such key; there are: dataset.only"),
    ("optimiser.lr=0.1", "optimiser: there is no such key; did you mean optimizer?"),
    ("network=3", "a group takes the name of a choice"),
    ("experiment", "experiment: cannot be read as key=value"),
    ("run_id=[1", "run_id=[1: cannot be read as key=value"),
    ("seed=1,2", "--multirun"),
]
TYPES = [
    ("seed=abc", "seed=abc: give a whole number"),
    ("seed=null", "seed=None: it cannot be null"),
    ("batch_size=1.5", "batch_size=1.5: give a whole number"),
    ("trainer.max_steps=x", "trainer.max_steps=x: give a whole number"),
    ("trainer.gradient_clip_val=much", "trainer.gradient_clip_val=much: give a number"),
    ("trainer=3", "trainer=3: set its keys one by one"),
    ("network.channels=abc", "network.channels=abc: give a whole number"),
    ("network.channels=8.5", "network.channels=8.5: give a whole number"),
    ("network.channels=true", "network.channels=True: give a whole number"),
    ("network.channels=null", "network.channels=None: give a whole number"),
    ("network.multipliers=3", "network.multipliers=3: give a list"),
    ("network.multipliers=[1,x]", "network.multipliers=x: give a whole number"),
    ("optimizer.lr=x", "optimizer.lr=x: give a number"),
    ("grid.steps=x", "grid.steps=x: give a whole number"),
    ("objective.times=3", "objective.times=3: give its keys one by one"),
    ("callbacks.ema.decay=x", "callbacks.ema.decay=x: give a number"),
    ("model.target=3", "model.target=3: give a text"),
]
VALUES = [
    ("logger=wandb logger.project=a/b", "W&B: Invalid project name", "change logger.project"),
    ("logger=wandb logger.mode=away", "logger.mode=away: give online, offline"),
    ("logger=wandb logger.tags=tag", "logger.tags=tag: give a list"),
    ("logger=wandb +logger.colour=red", "colour"),
    ("resume=banana", "resume=banana: give auto or never"),
    ("run_id=a/b", "run_id=a/b: use letters"),
    ("run_id=..", "it names one folder"),
    ("batch_size=0", "batch_size=0: give a number above 0"),
    ("trainer.max_steps=-5", "trainer.max_steps=-5: give a number above 0"),
    ("trainer.max_steps=null", "set trainer.max_steps or trainer.max_time"),
    ("trainer.max_time=5min", "trainer.max_time=5min: give DD:HH:MM:SS"),
    ("trainer.max_time=00:00:00:00", "give DD:HH:MM:SS"),
    ("trainer.accumulate_grad_batches=0", "give a number above 0"),
    ("checkpoint.every_n_steps=0", "checkpoint.every_n_steps=0: give a number above 0"),
    ("optimizer.lr=-1", "learning rate"),
    ("network.dropout=1.5", "dropout"),
    ("network.multipliers=[]", "network.multipliers"),
    ("network.channels=0", "network.channels"),
    ("network.blocks=0", "network.blocks"),
    ("network.multipliers=[1,1,1,1,1]", "images of 8x8 cannot be halved 4 times"),
    ("+network.foo=3", "foo"),
    ("grid.steps=0", "grid.steps=0: a sampler takes at least 1 step"),
    ("grid.sigma_min=-1", "give 0 < sigma_min < sigma_max"),
    ("callbacks.previews.n=0", "previews.n"),
    ("model.target=nope", "model.target=nope"),
    ("accelerator.precision=nonsense", "nonsense"),
    ("accelerator.accelerator=banana", "banana"),
    ("accelerator.compile=fast", "accelerator.compile=fast", "reduce-overhead"),
    ("optimizer._target_=torch.optim.Nope", "torch.optim.Nope"),
]


@pytest.mark.parametrize("case", NAMES + TYPES + VALUES, ids=lambda case: case[0])
def test_one_bad_word_is_refused(refused, case):
    override, *said = case
    line = refused(*override.split())
    assert all(words in line for words in said), line


def test_eps_with_zero_terminal_snr_is_refused(refused):
    line = refused("scheduler=flow", "parameterization=eps")
    assert "zero terminal SNR" in line and "choose parameterization=v" in line
    line = refused("scheduler=cosine", "scheduler.log_snr_min=-inf", "parameterization=eps")
    assert "zero terminal SNR" in line


def test_a_gpu_that_is_not_there_is_refused(refused):
    with mock.patch("torch.cuda.is_available", return_value=False), mock.patch("torch.cuda.device_count", lambda: 0):
        assert "gpu" in refused("accelerator=gpu")


def test_a_multirun_over_several_devices_is_refused(capfd, tmp_path):
    words = [*SMALL, LIMIT, f"runs_dir={tmp_path}/runs", "accelerator.devices=2", "seed=1,2", "-m"]
    line = refusal(capfd, train_py, *words)
    assert "accelerator.devices=2" in line and "torchrun" in line
    assert not (tmp_path / "runs" / "digits_pixel").exists()


def test_runs_dir_with_a_file_in_its_place_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("kept")
    line = refused(f"runs_dir={tmp_path}/file")
    assert "cannot make the run directory" in line and "set runs_dir" in line
    assert (tmp_path / "file").read_text() == "kept"


def npz(path, **changes) -> str:
    """A small file in MedMNIST's layout, with other arrays in place of its own."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": images, f"{split}_labels": np.arange(12)[:, None] % 3}
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return str(path)


FILES = [
    ("shape", {"train_images": np.zeros((12, 8), np.uint8)}, "(12, 8)", "train"),
    ("another shape in val", {"val_images": np.zeros((12, 8, 9), np.uint8)}, "val", "resize"),
    ("dtype", {"train_images": np.random.rand(12, 8, 8)}, "float64", "uint8"),
    ("labels out of range", {"test_labels": np.full((12, 1), 7)}, "test", "label 7", "0 to 2"),
    ("labels with a gap", {"train_labels": np.array([0, 5] * 6)}, "train", "gap"),
    ("labels of another length", {"val_labels": np.zeros(3, np.int64)}, "val", "12 images"),
    ("float labels", {f"{s}_labels": np.full(12, 0.5) for s in ("train", "val", "test")}, "whole numbers"),
    ("empty split", {"val_images": np.zeros((0, 8, 8), np.uint8), "val_labels": np.zeros((0, 1), int)}, "val", "empty"),
    ("no split", {"test_images": None}, "test_images"),
    ("flat grey", {"train_images": np.full((12, 8, 8), 7, np.uint8)}, "same value"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), [(k, c, s) for k, c, *s in FILES], ids=[f[0] for f in FILES])
def test_a_file_that_breaks_the_layout_is_refused(refused, tmp_path, kind, changes, said):
    path = npz(tmp_path / "data.npz", **changes)
    line = refused("dataset=npz", f"dataset.path={path}")
    assert path in line and all(words in line for words in said), line


def test_a_file_that_is_missing_cut_short_or_something_else_is_refused(refused, tmp_path):
    assert "dataset.path=FILE" in refused("dataset=npz")
    assert "does not exist" in refused("dataset=npz", f"dataset.path={tmp_path}/none.npz")
    assert "is a folder" in refused("dataset=npz", f"dataset.path={tmp_path}")
    path = tmp_path / "data.npz"
    npz(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:200] + bytes(200) + whole[400:]):
        path.write_bytes(damaged)
        line = refused("dataset=npz", f"dataset.path={path}")
        assert str(path) in line and "copy" in line


def test_an_official_file_that_is_missing_or_has_other_bytes_is_refused(refused, tmp_path):
    wanted = ["dataset=breastmnist", f"dataset.root={tmp_path}", "dataset.download=false"]
    line = refused(*wanted)
    assert "750601b1f35ba3300ea97c75c52ff8f6" in line and "https://" in line and f"{tmp_path}/breastmnist.npz" in line
    npz(tmp_path / "breastmnist.npz")
    line = refused(*wanted)
    assert "md5" in line and "dataset=npz" in line
    assert (tmp_path / "breastmnist.npz").exists()


def test_the_traceback_is_shown_on_demand(capfd, tmp_path):
    arguments = [*SMALL, LIMIT, f"runs_dir={tmp_path}/runs", "resume=banana"]
    with mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "1"}), pytest.raises(ValueError, match="resume=banana"):
        train_py(*arguments)


def test_an_error_of_the_program_keeps_its_traceback(tmp_path):
    broken = mock.patch("diffusion.apps.train.check", side_effect=ZeroDivisionError("a bug"))
    full = mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0"})
    with broken, full, pytest.raises(ZeroDivisionError, match="a bug"):
        train_py(*SMALL, LIMIT, f"runs_dir={tmp_path}/runs")
