"""What `python -m diffusion sample` and a second train.py on the same run refuse; nothing written is lost."""

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.commands import diffusion, refusal, train_py
from tests.training import SMALL, run_training

pytestmark = pytest.mark.slow

PLAN = ["trainer.max_steps=4", "trainer.validate_every_n_steps=2", "checkpoint.every_n_steps=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return run_training(tmp_path_factory.mktemp("trained"), *PLAN)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Path:
    return run_training(tmp_path_factory.mktemp("unlabelled"), *PLAN, "model.condition=[]", "guidance=none")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of a trained run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "digits_pixel" / "run"))


def content(folder: Path) -> dict[str, str]:
    """The digest of every file but the log."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("train.log", ".lock"))
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def refused(capfd, tmp_path):
    """A function from the words of a task to the line that refuses them; it changes no file."""

    def call(*words: str) -> str:
        before = content(tmp_path)
        line = refusal(capfd, diffusion, *words)
        assert content(tmp_path) == before
        return line

    return call


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SAMPLING = [
    ("n=0", "n=0: ask for at least 1"),
    ("n=-3", "n=-3: ask for at least 1"),
    ("n=many", "n=many: give a whole number"),
    ("n=2.5", "n=2.5: give a whole number"),
    ("n=null", "n=None: give a whole number"),
    ("batch_size=0", "batch_size=0: ask for at least 1"),
    ("seed=abc", "seed=abc: give a whole number"),
    ("overwrite=3", "overwrite=3: give true or false"),
    ("label=10", "the classes of this run are 0 to 9"),
    ("label=[0,-1]", "the classes of this run are 0 to 9"),
    ("label=seven", "give a class index"),
    ("label=[]", "give a class index"),
    ("label=true", "give a class index"),
    ("checkpoint=first", "checkpoints holds best, last, previous"),
    ("device=tpu", "device=tpu is not here; there are: cpu"),
    ("sampler=hein", "did you mean heun?"),
    ("sampler=plms", "there are: ddim, ddpm"),
    ("sampler.eta=1", "sampler.eta: there is no such key"),
    ("grid=none", "grid=none: there is no such choice"),
    ("grid.steps=0", "grid.steps=0: a sampler takes at least 1 step"),
    ("grid.steps=few", "grid.steps=few: give a whole number"),
    ("guidance=strong", "guidance=strong: there is no such choice"),
    ("guidance=none guidance.scale=2", "guidance has no keys as it is: choose another guidance="),
    ("nn=3", "nn: there is no such key; did you mean n?"),
    ("steps=3", "did you mean grid.steps?"),
    ("batchsize=3", "did you mean batch_size?"),
    ("+n=3", "give key=value"),
    ("n", "cannot be read as key=value"),
    ("n=1,2", "give key=value"),
]


@pytest.mark.parametrize(("words", "said"), SAMPLING)
def test_one_bad_word_is_refused(refused, run, words, said):
    assert said in refused("sample", f"run={run}", *words.split())


def test_a_task_that_there_is_not_is_refused(refused):
    assert "did you mean sample?" in refused("smaple", "run=x")
    assert "there are: " in refused("banana")
    assert "sample needs run=RUN_DIR" in refused("sample", "n=3")


def test_a_folder_that_is_no_run_is_refused(refused, tmp_path):
    assert "does not exist" in refused("sample", f"run={tmp_path}/none")
    assert "has no config.yaml" in refused("sample", f"run={tmp_path}")
    (tmp_path / "config.yaml").write_text("seed: [1\n")
    assert "cannot be read" in refused("sample", f"run={tmp_path}")
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    assert "cannot be read" in refused("sample", f"run={tmp_path}")


def test_a_label_for_a_run_without_labels_is_refused(refused, unlabelled):
    assert "was trained without labels; leave label out" in refused("sample", f"run={unlabelled}", "label=3")
    assert "guidance" in refused("sample", f"run={unlabelled}", "guidance=2")
    assert not (unlabelled / "sample").exists()


def test_an_out_that_is_a_file_or_holds_results_is_refused(refused, run, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert "is a file: give a folder" in refused("sample", f"run={run}", f"out={tmp_path}/file")
    assert "cannot be made" in refused("sample", f"run={run}", f"out={tmp_path}/file/below")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "samples.npz").write_text("kept")
    assert "overwrite=true" in refused("sample", f"run={run}", f"out={tmp_path}/full")


def test_checkpoints_that_are_all_cut_short_are_refused(refused, run):
    for path in (run / "checkpoints").iterdir():
        cut(path)
    line = refused("sample", f"run={run}")
    assert "damaged" in line and "last.ckpt" in line and "previous.ckpt" in line


def test_a_run_without_a_checkpoint_is_refused(refused, run):
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint yet: train it first" in refused("sample", f"run={run}")


def test_a_checkpoint_cut_short_gives_way_to_the_one_before_it(run, capfd, caplog):
    cut(run / "checkpoints" / "last.ckpt")
    diffusion("sample", f"run={run}", "n=2", "device=cpu")
    assert "last.ckpt is damaged" in caplog.text + capfd.readouterr().err
    assert (run / "sample" / "samples.npz").exists()


AGAIN = [
    (["resume=never"], "choose another run_id"),
    (["seed=1"], "seed: 0 -> 1"),
    (["network.channels=16"], "network.channels: 8 -> 16"),
    (["dataset=tissue"], "dataset._target_"),
    (["optimizer.lr=0.5"], "-> 0.5"),
]


@pytest.mark.parametrize(("overrides", "said"), AGAIN, ids=lambda value: str(value[0]))
def test_another_config_on_the_same_run_is_refused(run, tmp_path, capfd, overrides, said):
    before = content(run)
    line = refusal(capfd, train_py, *SMALL, *PLAN, f"runs_dir={tmp_path}/runs", "run_id=run", *overrides)
    assert said in line and str(run) in line
    assert content(run) == before


def test_a_run_whose_checkpoints_are_all_damaged_does_not_go_on(run, tmp_path, capfd):
    for path in (run / "checkpoints").iterdir():
        cut(path)
    before = content(run)
    line = refusal(capfd, train_py, *SMALL, *PLAN, f"runs_dir={tmp_path}/runs", "run_id=run", "trainer.max_steps=8")
    assert "damaged" in line and "another run_id" in line
    assert content(run) == before


def test_a_folder_of_something_else_is_not_taken_for_a_run(tmp_path, capfd):
    folder = tmp_path / "runs" / "digits_pixel" / "run"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("kept")
    line = refusal(capfd, train_py, *SMALL, *PLAN, f"runs_dir={tmp_path}/runs", "run_id=run")
    assert "no config.yaml" in line
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
