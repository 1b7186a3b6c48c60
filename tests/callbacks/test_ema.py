"""The average is the one that its formula gives, is what validation sees, and never takes the weights' place."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from diffusion.callbacks import EMA
from tests.callbacks.toy import Toy, fit, weights_of


class Recorder(pl.Callback):
    """Weights and average after each batch, and before the first."""

    def __init__(self, ema: EMA):
        self.ema, self.weights, self.averages = ema, [], []

    def record(self, module):
        self.weights.append(weights_of(module))
        self.averages.append({name: value.clone() for name, value in self.ema.average.items()})

    def on_train_start(self, trainer, pl_module):
        self.record(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.record(pl_module)


def recorded(module, steps, decay=0.999, **options):
    ema = EMA(decay)
    recorder = Recorder(ema)
    fit(module, [ema, recorder], steps, **options)
    return ema, recorder


@pytest.mark.parametrize("decay", [0.999, 0.3])
def test_average_by_hand(decay):
    _, recorder = recorded(Toy(), 12, decay)
    by_hand = {name: value.double() for name, value in recorder.weights[0].items()}
    # (1 + n) / (10 + n) after the steps n = 1, 2, ..., 12, written out; 0.3 is reached at n = 3 (4/13 > 0.3).
    warm = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 9 / 18, 10 / 19, 11 / 20, 12 / 21, 13 / 22]
    for n, share in enumerate(warm, 1):
        d = 0.3 if decay == 0.3 and n >= 3 else share
        for name, value in by_hand.items():
            value.mul_(d).add_(recorder.weights[n][name].double(), alpha=1 - d)
            torch.testing.assert_close(recorder.averages[n][name].double(), value, rtol=0, atol=1e-6)


def test_keys_are_the_networks_own_and_nothing_else():
    ema, _ = recorded(Toy(), 1)
    assert set(ema.average) == {"weight", "bias"}


def test_half_precision_weights_are_averaged_in_float32():
    _, recorder = recorded(Toy(torch.bfloat16, lr=1e-3), 30)
    assert all(value.dtype == torch.float32 for value in recorder.averages[-1].values())
    # An average in bfloat16 (three digits) could hold none of these small moves.
    moved = recorder.averages[-1]["weight"]
    assert not torch.equal(moved, moved.bfloat16().float())


def test_moves_once_for_each_optimizer_step():
    _, recorder = recorded(Toy(), 3, accumulate_grad_batches=4)
    averages = [a["weight"] for a in recorder.averages]
    moves = [i for i in range(1, len(averages)) if not torch.equal(averages[i], averages[i - 1])]
    assert moves == [4, 8, 12]


def test_validation_sees_the_average_and_training_its_own_weights():
    module = Toy()
    ema = EMA()
    fit(module, [ema], 5, val_check_interval=5)
    assert all(torch.equal(module.seen[0][name], ema.average[name]) for name in ema.average)
    assert not torch.equal(module.network.weight, ema.average["weight"])
    plain = Toy()
    fit(plain, [], 5, val_check_interval=2)
    assert torch.equal(module.network.weight, plain.network.weight)


def test_exception_in_validation_leaves_the_training_weights():
    module = Toy()
    ema = EMA()
    recorder = Recorder(ema)
    validate = module.validation_step

    def second_fails(batch, batch_idx):
        validate(batch, batch_idx)
        if len(module.seen) == 2:
            raise RuntimeError("in validation")

    module.validation_step = second_fails
    with pytest.raises(RuntimeError, match="in validation"):
        fit(module, [ema, recorder], 20, val_check_interval=3)
    assert torch.equal(module.seen[1]["weight"], ema.average["weight"])
    assert torch.equal(module.network.weight, recorder.weights[6]["weight"])
    assert not torch.equal(module.network.weight, ema.average["weight"])


def test_applied_puts_the_weights_back_when_the_body_raises():
    module = Toy()
    ema, _ = recorded(module, 3)
    before = weights_of(module)
    with pytest.raises(KeyError), ema.applied(module.network):
        assert torch.equal(module.network.weight, ema.average["weight"])
        raise KeyError
    assert torch.equal(module.network.weight, before["weight"])


def test_applied_inside_validation_does_not_swap_twice():
    module, ema = Toy(), EMA()

    class Inner(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            with ema.applied(pl_module.network):
                self.inside = weights_of(pl_module)
            self.after = weights_of(pl_module)

    inner = Inner()
    fit(module, [ema, inner], 3, val_check_interval=3)
    assert torch.equal(inner.inside["weight"], ema.average["weight"])
    assert torch.equal(inner.after["weight"], ema.average["weight"])
    assert not torch.equal(module.network.weight, ema.average["weight"])


def test_checkpoint_round_trip_goes_on_to_the_bit(tmp_path):
    ema, whole = recorded(Toy(), 9)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    first = EMA()
    fit(Toy(), [first, Save()], 4)
    content = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert set(content["ema"]) == {"weight", "bias"}
    assert all(torch.equal(content["ema"][name], whole.averages[4][name]) for name in content["ema"])

    again = EMA()
    recorder = Recorder(again)
    module = Toy()
    with torch.no_grad():
        module.network.weight.fill_(7.0)  # the checkpoint's weights must take its place
    fit(module, [again, recorder], 9, ckpt_path=tmp_path / "x.ckpt")
    assert all(torch.equal(recorder.averages[0][name], whole.averages[4][name]) for name in again.average)
    assert all(torch.equal(again.average[name], ema.average[name]) for name in ema.average)


def test_averages_take_the_layout_of_the_weights():
    """Also where a checkpoint has them in another: mixed layouts cost time at every step."""
    module, ema = Toy(), EMA()
    module.network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    given = {name: torch.randn(p.shape) for name, p in module.network.named_parameters()}
    ema.on_load_checkpoint(None, module, {"ema": given})
    ema.on_train_start(SimpleNamespace(global_step=0), module)
    assert ema.average["weight"].stride() == module.network.weight.stride() != given["weight"].stride()
    assert all(torch.equal(ema.average[name], value) for name, value in given.items())
