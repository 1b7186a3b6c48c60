"""A checkpoint is whole or not there, and the one before it stays until it is."""

import errno
import os
import signal
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch

from diffusion.callbacks import AtomicCheckpointIO, Budget, Checkpoints, StopSignals
from diffusion.callbacks.checkpoints import facts_of, is_whole
from diffusion.errors import Stopped, UserError
from tests.callbacks.toy import Toy, fit


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def trained(folder, steps, every, val_losses=(), signals=None, ckpt_path=None, extra=(), **options):
    checkpoints = Checkpoints(folder, every, signals or StopSignals())
    module = Toy(val_losses=list(val_losses))
    callbacks = [Budget(steps, None), *extra, checkpoints]
    fit(module, callbacks, ckpt_path=ckpt_path, plugins=[AtomicCheckpointIO()], **options)
    return checkpoints


@pytest.fixture
def handlers():
    """Puts the process's own signal handlers back."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


pytestmark = pytest.mark.usefixtures("handlers")


def test_last_previous_and_best(tmp_path):
    trained(tmp_path, 8, every=3, val_losses=[3.0, 1.0, 2.0, 1.5], val_check_interval=2)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert [step_of(tmp_path / name) for name in names(tmp_path)] == [4, 8, 6]


def test_a_validation_comes_before_the_checkpoint_of_its_step(tmp_path):
    trained(tmp_path, 4, every=4, val_losses=[0.25], val_check_interval=4)
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert states["Checkpoints"] == {"best": 0.25}


def test_steps_are_optimizer_steps(tmp_path):
    trained(tmp_path, 5, every=2, accumulate_grad_batches=3)
    assert [step_of(tmp_path / name) for name in ("last.ckpt", "previous.ckpt")] == [5, 4]


def test_best_is_remembered_over_a_restart(tmp_path):
    trained(tmp_path, 4, every=2, val_losses=[1.0, 2.0], val_check_interval=2)
    trained(tmp_path, 8, every=2, val_losses=[1.5, 1.2], val_check_interval=2, ckpt_path=tmp_path / "last.ckpt")
    assert step_of(tmp_path / "last.ckpt") == 8
    assert step_of(tmp_path / "best.ckpt") == 2


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".last.ckpt.99999.tmp").write_bytes(b"half")
    trained(tmp_path, 2, every=1)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_saves_and_stops(tmp_path, number):
    signals = StopSignals()

    class Signalled(Budget):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 4:
                os.kill(os.getpid(), number)

    with pytest.raises(Stopped):
        trained(tmp_path, 10, every=100, signals=signals, extra=[Signalled(None, None)])
    assert signals.received is number
    assert names(tmp_path) == ["last.ckpt"]
    assert step_of(tmp_path / "last.ckpt") == 5


def test_signal_in_the_last_step_lets_the_run_end(tmp_path):
    signals = StopSignals()
    signals.received = signal.SIGTERM
    trained(tmp_path, 1, every=100, signals=signals)
    assert step_of(tmp_path / "last.ckpt") == 1


def test_signal_with_a_validation_due_validates_first(tmp_path):
    signals = StopSignals()
    signals.received = signal.SIGTERM
    with pytest.raises(Stopped):
        trained(tmp_path, 10, every=100, signals=signals, val_losses=[0.5], val_check_interval=1)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["Checkpoints"] == {"best": 0.5}


def test_signal_amid_accumulation_waits_for_the_step(tmp_path):
    signals = StopSignals()
    signals.received = signal.SIGTERM
    with pytest.raises(Stopped):
        trained(tmp_path, 10, every=100, signals=signals, accumulate_grad_batches=4)
    assert step_of(tmp_path / "last.ckpt") == 1


def test_second_interrupt_ends_at_once():
    signals = StopSignals()
    signals.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.received is signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


CONTENT = {"weights": torch.arange(200.0), "names": ["a", "b"], "step": 7}


def save(path, content=CONTENT):
    AtomicCheckpointIO().save_checkpoint(content, path)


def test_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    save(tmp_path / "last.ckpt", {"step": 1})
    save(tmp_path / "last.ckpt", {"step": 2})

    def full(content, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"last\.ckpt: No space left on device; .* make room") as error:
        save(tmp_path / "last.ckpt")
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["last.ckpt", "previous.ckpt"]
    assert torch.load(tmp_path / "last.ckpt") == {"step": 2}
    assert torch.load(tmp_path / "previous.ckpt") == {"step": 1}


@pytest.fixture
def megabyte(tmp_path):
    """A disk of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a file system: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(megabyte):
    small = {"weights": torch.zeros(50_000), "step": 1}  # 0.2 MB
    save(megabyte / "last.ckpt", small)
    save(megabyte / "last.ckpt", small | {"step": 2})
    for _ in range(3):
        with pytest.raises(UserError, match="cannot write checkpoint") as error:
            save(megabyte / "last.ckpt", {"weights": torch.zeros(500_000), "step": 3})
        assert "\n" not in str(error.value)
    assert names(megabyte) == ["last.ckpt", "previous.ckpt"]
    assert all(is_whole(megabyte / name) for name in names(megabyte))
    assert torch.load(megabyte / "last.ckpt")["step"] == 2
    save(megabyte / "last.ckpt", small | {"step": 4})
    assert torch.load(megabyte / "last.ckpt")["step"] == 4


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoint"):
        save(tmp_path / "file" / "last.ckpt")


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "x.ckpt"
    save(path)
    return path


def test_whole(whole):
    assert is_whole(whole)
    assert names(whole.parent) == ["x.ckpt"]


def test_truncated_anywhere(whole):
    raw = whole.read_bytes()
    for length in [*range(0, len(raw), 97), *range(len(raw) - 64, len(raw))]:
        whole.write_bytes(raw[:length])
        assert not is_whole(whole), length


@pytest.mark.filterwarnings("ignore")
def test_flipped_bit_anywhere_is_found_or_harmless(whole):
    """Every seventh byte: padding may change, the content may not."""
    raw = whole.read_bytes()
    found = 0
    for place in range(0, len(raw), 7):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << place % 8
        whole.write_bytes(flipped)
        os.utime(whole, ns=(place, place))  # two writes within a tick of the clock would be one
        if not is_whole(whole):
            found += 1
            continue
        content = torch.load(whole, weights_only=True)
        assert torch.equal(content["weights"], CONTENT["weights"]), place
        assert (content["names"], content["step"]) == (["a", "b"], 7)
    assert found > 800 / 7  # at the least, each of the weights' own bytes


def test_a_file_is_read_again_when_another_takes_its_place(whole):
    assert is_whole(whole)
    with mock.patch("torch.load", side_effect=AssertionError("read again")):
        assert is_whole(whole)
    save(whole, {"global_step": 9, "callbacks": {"Budget": {"elapsed": 1.5, "ended": False}}})
    assert facts_of(whole) == {"global_step": 9, "callbacks": {"Budget": {"elapsed": 1.5, "ended": False}}}
    whole.unlink()
    assert facts_of(whole) is None


def test_missing_a_folder_and_text_are_not_whole(tmp_path):
    assert not is_whole(tmp_path / "missing.ckpt")
    assert not is_whole(tmp_path)
    (tmp_path / "text.ckpt").write_text("no zip archive\n" * 100)
    assert not is_whole(tmp_path / "text.ckpt")
