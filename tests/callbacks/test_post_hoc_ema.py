"""An average of any length, made of snapshots of two, is the one that is kept directly; a kill changes nothing."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from diffusion.averages import decay, exponent
from diffusion.callbacks import AtomicCheckpointIO, PostHocEMA
from diffusion.callbacks.post_hoc_ema import due, reconstructed, stored
from diffusion.errors import UserError
from tests.callbacks.toy import Toy, fit, weights_of

STEPS = 300
DUE = [20, 23, 27, 32, 37, 43, 50, 58, 67, 78, 90, 104, 120, 138, 159, 183, 211, 243, 280]


class Drifting(Toy):
    """Its weights drift, ever more slowly, and jitter by a tenth of their size."""

    def training_step(self, batch, batch_idx):
        pulled = sum((p - 1 - place).square().sum() for place, p in enumerate(self.network.parameters()))
        return 0.05 * pulled + super().training_step(batch, batch_idx)


class Tracked(pl.Callback):
    """The average of one length, kept directly in float64."""

    def __init__(self, length: float, at: int):
        self.gamma, self.at, self.seen = exponent(length), at, 0

    def on_train_batch_end(self, trainer, pl_module, *args):
        step, weights = trainer.global_step, {k: w.double() for k, w in weights_of(pl_module).items()}
        if step == self.seen:
            return  # an accumulated batch
        self.seen = step
        if step == 1:
            self.average = weights
        if step <= self.at:
            beta = decay(step, self.gamma)
            self.average = {k: beta * self.average[k] + (1 - beta) * w for k, w in weights.items()}


def trained(folder, steps=STEPS, more=(), snapshots=16, **options) -> pl.Trainer:
    return fit(Drifting(), [PostHocEMA(folder / "ema", snapshots), *more], steps, **options)


def checkpoint_of(trainer: pl.Trainer, folder) -> dict:
    trainer.save_checkpoint(folder / "last.ckpt")
    return torch.load(folder / "last.ckpt", weights_only=True)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


@pytest.mark.slow
def test_reconstructed_is_the_average_that_is_kept_directly(tmp_path):
    """To 1e-3: at the end with as many snapshots as are kept by default, in the middle with all of them."""
    tracked = {(length, at): Tracked(length, at) for length in (0.07, 0.15, 0.2) for at in (138, STEPS)}
    trainer = trained(tmp_path, more=tracked.values(), snapshots=24)
    checkpoint = checkpoint_of(trainer, tmp_path)
    last = flat(weights_of(trainer.lightning_module))
    for (length, at), each in sorted(tracked.items(), key=lambda item: item[0][1]):
        if at == STEPS:
            for path in list(stored(tmp_path / "ema").values())[:-16]:
                path.unlink()
        wanted = flat(each.average)
        found = flat(reconstructed(checkpoint, tmp_path / "ema", length, at / STEPS))
        assert (found - wanted).norm() < 1e-3 * wanted.norm()
        assert (last - wanted).norm() > 1e-2 * wanted.norm()  # so that this says something


def test_the_kept_averages_are_given_as_they_are(tmp_path):
    checkpoint = checkpoint_of(trained(tmp_path, 60), tmp_path)
    for length in (0.05, 0.1):
        found = reconstructed(checkpoint, tmp_path / "ema", length)
        for name, value in checkpoint["profiles"][length].items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_snapshots_know_their_steps_and_are_bounded(tmp_path):
    assert [step for step in range(1, STEPS) if due(step)] == DUE
    trained(tmp_path, 100, snapshots=5)
    assert list(stored(tmp_path / "ema")) == [43, 50, 58, 67, 78, 90][-5:]
    for step, path in stored(tmp_path / "ema").items():
        content = torch.load(path, weights_only=True)
        assert content["global_step"] == step and content["profiles"].keys() == {0.05, 0.1}
        assert all(value.dtype is torch.float16 for a in content["profiles"].values() for value in a.values())


def test_accumulated_batches_are_not_averaged(tmp_path):
    tracked = Tracked(0.1, 30)
    trainer = trained(tmp_path, 30, [tracked], accumulate_grad_batches=2)
    found = next(each for each in trainer.callbacks if isinstance(each, PostHocEMA)).averages[0.1]
    assert list(stored(tmp_path / "ema")) == [20, 23, 27]
    torch.testing.assert_close(flat(found), flat(tracked.average), rtol=1e-5, atol=1e-7)


def test_a_run_that_was_killed_after_a_snapshot_goes_on_to_the_same_bits(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    wanted = checkpoint_of(trained(whole, 60), whole)
    checkpoint_of(trained(cut, 30), cut)
    # What it had written beyond its checkpoint before it was killed, the last of it in half.
    folder = cut / "ema"
    (folder / "32.ckpt").write_bytes((whole / "ema" / "32.ckpt").read_bytes())
    (folder / "1000.ckpt").write_bytes(b"of a run that went another way")
    (folder / ".37.ckpt.1.tmp").write_bytes(b"half")
    found = checkpoint_of(trained(cut, 60, ckpt_path=cut / "last.ckpt"), cut)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in (whole / "ema").iterdir())
    for length, average in wanted["profiles"].items():
        assert all(torch.equal(found["profiles"][length][name], value) for name, value in average.items())
    for step, path in stored(folder).items():
        one, other = (torch.load(p, weights_only=True)["profiles"] for p in (path, whole / "ema" / f"{step}.ckpt"))
        assert all(torch.equal(one[k][name], value) for k, a in other.items() for name, value in a.items())


def test_only_the_first_process_writes(tmp_path):
    callback, module = PostHocEMA(tmp_path / "ema"), Toy()
    trainer = SimpleNamespace(is_global_zero=False, global_step=0)
    callback.setup(trainer, module, "fit")
    callback.on_train_start(trainer, module)
    for step in range(1, 25):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module)
    assert not (tmp_path / "ema").exists()
    torch.testing.assert_close(callback.averages[0.1]["weight"], module.network.weight.detach())


@pytest.mark.parametrize("snapshots", [0, -1])
def test_a_number_of_snapshots_that_is_none(tmp_path, snapshots):
    with pytest.raises(UserError, match=r"callbacks\.post_hoc_ema\.snapshots"):
        PostHocEMA(tmp_path, snapshots)


def test_what_cannot_be_reconstructed(tmp_path, caplog):
    checkpoint, folder = checkpoint_of(trained(tmp_path, 100, snapshots=8), tmp_path), tmp_path / "ema"
    with pytest.raises(UserError, match=r"ema=0\.1: this run has kept no averages .*snapshots=16"):
        reconstructed({"global_step": 5, "ema": {}}, folder, 0.1)
    for at in (0, 1.1, "x", True):
        with pytest.raises(UserError, match=f"at={at}: give a share"):
            reconstructed(checkpoint, folder, 0.1, at)
    with pytest.raises(UserError, match=r"at=0\.1: the first snapshot .* step 32, 0\.32 of its 100 steps"):
        reconstructed(checkpoint, folder, 0.1, 0.1)
    with pytest.raises(UserError, match=r"ema=0\.01 at step 100: .* miss \d\d% .* nearer to 0\.05 or 0\.1"):
        reconstructed(checkpoint, folder, 0.01)
    assert "miss" not in caplog.text
    reconstructed(checkpoint, folder, 0.02)
    assert "ema=0.02 at step 100: the snapshots before it miss 20%" in caplog.text
    (folder / "50.ckpt").write_bytes((folder / "50.ckpt").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"50\.ckpt is damaged: remove it"):
        reconstructed(checkpoint, folder, 0.15)
    (folder / "50.ckpt").unlink()
    reconstructed(checkpoint, folder, 0.15)


def test_snapshots_after_the_checkpoint_are_not_used(tmp_path):
    """Those of an earlier checkpoint, such as the best, are its own alone, though the run went on."""
    trainer = trained(tmp_path, 100)
    before = reconstructed(checkpoint_of(trainer, tmp_path), tmp_path / "ema", 0.15)
    content = {"global_step": 120, "profiles": {k: {"weight": torch.full((1, 3), 9.0)} for k in (0.05, 0.1)}}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "ema" / "120.ckpt")
    after = reconstructed(torch.load(tmp_path / "last.ckpt", weights_only=True), tmp_path / "ema", 0.15)
    assert all(torch.equal(before[name], value) for name, value in after.items())
