"""The commands as a shell sees them: status, what is printed where, and how long they take."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from diffusion.apps import cli
from diffusion.apps.config import readable
from diffusion.errors import Abandoned, Stopped, UserError

ROOT = Path(__file__).resolve().parents[2]
HELP_SECONDS = 4.0


def command(cwd: Path, *words: str) -> tuple[subprocess.CompletedProcess, float]:
    """Run python with these words in an empty folder, which must stay empty; the seconds that it took."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=60
    )
    assert list(cwd.iterdir()) == [], "a command that did nothing left something behind"
    return done, time.monotonic() - start


@pytest.mark.slow
def test_help_is_quick_and_lists_what_there_is(tmp_path):
    for _ in range(3):  # others may keep the machine busy
        done, seconds = command(tmp_path, "-X", "importtime", str(ROOT / "train.py"), "--help")
        if seconds <= HELP_SECONDS:
            break
    assert done.returncode == 0
    assert "python train.py experiment=NAME" in done.stdout
    for words in ("bloodmnist_latent, bloodmnist_pixel", "sampler: ddim", "max_steps", "run_id"):
        assert words in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "pytorch_lightning", "lightning_fabric", "numpy", "sklearn", "matplotlib", "wandb"}
    assert seconds <= HELP_SECONDS


@pytest.mark.slow
def test_a_mistake_is_one_line_and_status_2(tmp_path):
    done, _ = command(tmp_path, str(ROOT / "train.py"), "experiment=nope")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: experiment=nope: ")
    done, _ = command(tmp_path, "-m", "diffusion", "sample", "run=/nonexistent")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: run=/nonexistent does not exist")


@pytest.mark.slow
def test_the_tasks_say_how_they_are_used(tmp_path):
    done, _ = command(tmp_path, "-m", "diffusion")
    assert done.returncode == 0 and done.stderr == ""
    assert "usage: python -m diffusion TASK run=RUN_DIR" in done.stdout and "sample" in done.stdout
    done, _ = command(tmp_path, "-m", "diffusion", "sample", "--help")
    assert done.returncode == 0
    assert {"run:", "out:", "n:", "label:", "batch_size:"} <= set(done.stdout.split())


@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "inside Hydra"])
@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (UserError("wrong; do this"), 2, "error: wrong; do this\n"),
        (Stopped(), 75, ""),
        (Abandoned("left alone"), 1, "left alone\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyError("bug"), None, ""),
    ],
    ids=["mistake", "signal", "lost", "Ctrl-C", "bug"],
)
def test_how_a_command_ends(monkeypatch, capsys, wrap, error, status, printed):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def body():
        if not wrap:
            raise error
        with cli.deferred():
            raise error

    with pytest.raises(KeyError if status is None else SystemExit) as ended:
        cli.run(body)
    assert ended.value is error if status is None else ended.value.code == status
    assert capsys.readouterr().err == printed


def test_a_mistake_behind_other_exceptions_is_found():
    try:
        try:
            raise UserError("the cause")
        except UserError as error:
            raise RuntimeError("somebody's wrapper") from error
    except RuntimeError as error:
        assert cli.explain(error) == "the cause"
    assert cli.explain(RuntimeError("a bug")) is None


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run=runs/a/lr=1,seed=2", "runs/a/lr=1,seed=2"),
        ("dataset.path=/a folder/b", "/a folder/b"),
        ("run='runs/a,b'", "runs/a,b"),
        ("run=runs/a", "runs/a"),
        ("label=[1,2]", [1, 2]),
        ("compare=[a/b,c/d]", ["a/b", "c/d"]),
    ],
)
def test_a_path_is_taken_as_it_is(word, value):
    (read,) = OverridesParser.create().parse_overrides(readable([word]))
    assert read.value() == value
