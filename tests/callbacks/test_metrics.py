"""metrics.csv loses nothing and repeats nothing; the logged loss is the mean; the figure shows it."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from diffusion.callbacks import Budget, LossFigure, MetricsCSV, MetricsLog
from diffusion.callbacks.loss_figure import draw_losses
from diffusion.callbacks.metrics_csv import read_columns, read_rows
from diffusion.errors import UserError
from tests.callbacks.toy import Toy, fit


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def test_rows_reach_the_file_at_once_and_in_order(path):
    log = MetricsCSV(path)
    log.log_metrics({"a": 1.5}, step=1)
    assert read_rows(path) == [{"step": "1", "a": "1.5"}]
    log.log_metrics({"a": 2.5}, step=2)
    assert path.read_text().split() == ["step,a", "1,1.5", "2,2.5"]


def test_a_new_column_keeps_the_old_rows(path):
    log = MetricsCSV(path)
    log.log_metrics({"a": 1}, step=1)
    log.log_metrics({"b": 2}, step=2)
    log.log_metrics({"b": 3, "a": 4}, step=3)
    assert path.read_text().split() == ["step,a,b", "1,1,", "2,,2", "3,4,3"]


def test_a_restart_appends(path):
    MetricsCSV(path).log_metrics({"a": 1, "b": 2}, step=1)
    again = MetricsCSV(path)
    again.log_metrics({"b": 3}, step=2)
    again.log_metrics({"c": 4}, step=3)
    assert path.read_text().split() == ["step,a,b,c", "1,1,2,", "2,,3,", "3,,,4"]


def test_cut_back_removes_what_came_after(path):
    log = MetricsCSV(path)
    for step in (2, 4, 4, 6, 8):
        log.log_metrics({"a": step}, step=step)
    again = MetricsCSV(path)
    again.cut_back(5)
    assert [row["step"] for row in read_rows(path)] == ["2", "4", "4"]
    again.log_metrics({"a": 0.5}, step=6)
    assert [row["step"] for row in read_rows(path)] == ["2", "4", "4", "6"]
    again.cut_back(6)
    assert len(read_rows(path)) == 4
    again.cut_back(0)
    assert read_columns(path) == ["step", "a"] and read_rows(path) == []


def test_cut_back_without_a_file_makes_none(path):
    MetricsCSV(path).cut_back(10)
    assert not path.exists()


@pytest.mark.parametrize("lost", range(1, 8))
def test_a_cut_last_row_is_left_out_and_written_anew(path, lost):
    log = MetricsCSV(path)
    log.log_metrics({"a": 11.25}, step=1)
    log.log_metrics({"a": 22.75}, step=2)
    raw = path.read_bytes()
    assert raw.endswith(b"2,22.75\r\n")
    path.write_bytes(raw[: -lost - 1])
    assert read_rows(path) == [{"step": "1", "a": "11.25"}]
    again = MetricsCSV(path)
    again.cut_back(1)
    again.log_metrics({"a": 22.75}, step=2)
    assert path.read_bytes() == raw


class Scripted(Toy):
    """Its training losses are given; the weights never matter."""

    def __init__(self, losses):
        super().__init__()
        self.losses = list(losses)

    def training_step(self, batch, batch_idx):
        return 0 * self.network(batch).mean() + self.losses[batch_idx]


def train_rows(path):
    return [(int(row["step"]), float(row["train/loss"])) for row in read_rows(path) if row.get("train/loss")]


def logged(path, losses, steps, every, **options):
    budget = Budget(steps, None)
    log = MetricsLog(budget, batch_size=4, every_n_steps=every)
    trainer = fit(Scripted(losses), [budget, log], logger=[MetricsCSV(path)], **options)
    return log, trainer


def test_loss_is_the_mean_over_the_interval(path):
    log, _ = logged(path, [1, 2, 6, 10, 20, 30, 7], steps=7, every=3)
    assert train_rows(path) == [(3, 3.0), (6, 20.0), (7, 7.0)]
    assert log.latest["train/loss"] == 7.0
    assert log.latest["val/loss"] == 1.0


def test_accumulated_batches_are_averaged(path):
    logged(path, [1, 3, 5, 7, 10, 20, 30, 40], steps=2, every=1, accumulate_grad_batches=4)
    assert train_rows(path) == [(1, 4.0), (2, 25.0)]


def test_speed_counts_images_of_optimizer_steps_and_not_validation(path, monkeypatch):
    from tests.callbacks.toy import Clock

    clock = Clock()
    monkeypatch.setattr("diffusion.callbacks.metrics_log.time", clock)
    budget = Budget(4, None)
    log = MetricsLog(budget, batch_size=4, every_n_steps=2)
    module = Scripted([1] * 4)
    step, validate = module.training_step, module.validation_step

    def slow_step(batch, batch_idx):
        clock.now += 0.5
        return step(batch, batch_idx)

    def slow_validation(batch, batch_idx):
        clock.now += 100
        validate(batch, batch_idx)

    module.training_step, module.validation_step = slow_step, slow_validation
    fit(module, [budget, log], logger=[MetricsCSV(path)], val_check_interval=2)
    rows = [row for row in read_rows(path) if row["train/loss"]]
    assert [float(row["train/images_per_second"]) for row in rows] == [8.0, 8.0]  # 4 images each half a second


def test_an_open_interval_goes_through_a_checkpoint(path):
    log = MetricsLog(Budget(10, None), 4, 3)
    log.load_state_dict({"sums": {"loss": 3.0}, "batches": {"loss": 2}})
    fit(Scripted([6.0] * 3), [log, Budget(3, None)], logger=[MetricsCSV(path)])
    assert train_rows(path) == [(3, (3 + 6 * 3) / 5)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_written_down(path, bad):
    with pytest.raises(UserError, match=r"at step 4: lower optimizer\.lr") as error:
        logged(path, [1, 1, bad, 1, 1, 1], steps=6, every=2)
    assert "\n" not in str(error.value)
    rows = train_rows(path)
    assert rows[0] == (2, 1.0)
    assert rows[1][0] == 4 and not math.isfinite(rows[1][1])


def test_no_checkpoint_holds_a_loss_that_is_not_finite(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    budget = Budget(100, None)
    with pytest.raises(UserError, match="loss is nan at step 3"):
        fit(Scripted([1, 1, math.nan, 1, 1, 1]), [budget, MetricsLog(budget, 4, every_n_steps=50), Save()])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.ckpt", "2.ckpt"]


def test_figure_shows_the_curves(tmp_path, path):
    log = MetricsCSV(path)
    for step in range(1, 30):
        log.log_metrics({"train/loss": 1 / step}, step=step)
    log.log_metrics({"val/loss": 0.5, "loss_by_noise/log_snr_-2_to_2": 0.4}, step=29)
    figure = tmp_path / "figures" / "loss.png"
    draw_losses(path, figure)
    pixels = np.asarray(Image.open(figure).convert("RGB")).astype(int)
    assert pixels.shape == (480, 1200, 3)
    blue = np.abs(pixels - [0x1F, 0x77, 0xB4]).sum(2) < 12  # tab:blue
    left, right = blue[:, :600].sum(), blue[:, 600:].sum()
    assert left > 20 and right > 10  # the validation loss, and its one noise level


@pytest.mark.slow
def test_figure_is_drawn_at_each_validation(tmp_path, path):
    figure = tmp_path / "loss.png"
    sizes = []

    class Look(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            sizes.append(figure.read_bytes())

    budget = Budget(4, None)
    callbacks = [budget, MetricsLog(budget, 4, 1), LossFigure(path, figure), Look()]
    fit(Scripted([4, 3, 2, 1]), callbacks, logger=[MetricsCSV(path)], val_check_interval=2)
    assert len(sizes) == 2 and sizes[0] != sizes[1]


def test_the_terms_of_a_step_are_logged_each_over_the_steps_that_had_it(path):
    class Terms(Scripted):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            extra = {"late": torch.tensor(float(batch_idx))} if batch_idx >= 2 else {}
            return {"loss": loss, "terms": {"loss": 2 * loss.detach(), **extra}}

    budget = Budget(4, None)
    fit(Terms([1.0] * 4), [budget, MetricsLog(budget, 4, every_n_steps=4)], logger=[MetricsCSV(path)])
    (row,) = [row for row in read_rows(path) if row["train/loss"]]
    assert float(row["train/loss"]) == 2.0 and float(row["train/late"]) == 2.5
