"""The progress line says the loss, the speed and the time left."""

import logging

from diffusion.callbacks import Budget, MetricsLog, ProgressBar
from tests.callbacks.toy import Clock, Toy, fit


class Slow(Toy):
    """Each training step takes half a second."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock.now += 0.5
        return 0 * self.network(batch).mean() + 0.25


def trained(monkeypatch, caplog, budget, line_seconds=0.0):
    clock = Clock()
    for module in ("budget", "metrics_log", "progress"):
        monkeypatch.setattr(f"diffusion.callbacks.{module}.time", clock)
    metrics = MetricsLog(budget, batch_size=64, every_n_steps=10)
    bar = ProgressBar(budget, metrics, line_seconds)
    with caplog.at_level(logging.INFO, logger="diffusion.callbacks.progress"):
        fit(Slow(clock), [budget, metrics, bar], val_check_interval=40)
    return [record.getMessage() for record in caplog.records if record.name == "diffusion.callbacks.progress"]


def test_line_by_steps(monkeypatch, caplog):
    lines = trained(monkeypatch, caplog, Budget(100, None))
    assert len(lines) == 100
    assert "loss" not in lines[0]
    # 50 steps of half a second took 25 s, and as many are left; 64 images a step are 128 a second.
    assert lines[49] == " 50%  step 50/100  loss 0.2500  128 images/s  val 1.0000  0:00:25 left"
    assert lines[-1].endswith("0:00:00 left")


def test_line_by_time(monkeypatch, caplog):
    lines = trained(monkeypatch, caplog, Budget(None, 20.0))
    assert lines[9] == " 25%  step 10  loss 0.2500  128 images/s  0:00:15 left"


def test_lines_keep_their_distance(monkeypatch, caplog):
    lines = trained(monkeypatch, caplog, Budget(100, None), line_seconds=10.0)
    assert [line.split("/")[0] for line in lines] == [f"{p:3}%  step {p}" for p in (20, 40, 60, 80, 100)]


def test_bar_on_a_terminal(monkeypatch, capsys, caplog):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert trained(monkeypatch, caplog, Budget(20, None)) == []
    shown = capsys.readouterr().err
    assert "step 20/20" in shown and "loss 0.2500" in shown and "images/s" in shown and "left" in shown
