"""python -m diffusion tune: its trials end as they should, whatever becomes of their processes and of its own."""

import csv
import html
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion.apps.tune import attempt, driver
from tests.commands import diffusion, refusal
from tests.training import SMALL, assert_same_run, start_training

ROOT = Path(__file__).resolve().parents[2]
TRAIN_PY = """
import os, signal, sys, time
from pathlib import Path

words = dict(word.split("=", 1) for word in sys.argv[1:])
run = Path(words["runs_dir"]) / words["experiment"] / words["run_id"].strip("'")
run.mkdir(parents=True, exist_ok=True)
(run / "starts").open("a").write(os.environ["MED_DIFFUSION_SWEEP"] + "\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
loss, how = float(words["optimizer.lr"]), os.environ.get("HOW", "")
if how == "fail" or how == "some fail" and loss > 0.5:
    print("error: optimizer.lr is too large", file=sys.stderr)
    sys.exit(2)
path = run / "metrics.csv"
if not path.exists():
    path.write_text("step,val/loss,elapsed_seconds\\n")
for step in range(100 * len(path.read_text().splitlines()), 501, 100):
    with path.open("a") as file:
        file.write(f"{step},{loss + 1 / step},{step / 100}\\n")
    if step == 200 and how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 200 and how == "stop":
        os.kill(os.getppid(), signal.SIGUSR1)
    if step == 200 and (how == "stop" or how == "hang" and loss > 0.7 and len(list(run.parent.iterdir())) > 6):
        time.sleep(60)
"""
SPACE = ["experiment=digits_pixel", "trainer.max_steps=500", "optimizer.lr=interval(0.1,1)"]


@pytest.fixture
def tune(tmp_path, monkeypatch):
    """The command, on a stand-in for train.py that logs a loss and is at its end at once; its study's folder."""
    (tmp_path / "train.py").write_text(TRAIN_PY)
    monkeypatch.setattr(attempt, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(driver, "POLL", 0.01)

    def run(*words: str, how: str = "", study: str = "study", status: int = 0, runs: Path = tmp_path) -> Path:
        monkeypatch.setenv("HOW", how)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        command = ["tune", *SPACE, f"runs_dir={runs}", f"study={study}", *words]
        if status:
            with pytest.raises(SystemExit) as ended:
                diffusion(*command)
            assert ended.value.code == status
        else:
            diffusion(*command)
        return runs / "studies" / study

    return run


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_search_is_written_down(tune, tmp_path, capfd):
    folder = tune("trials=6", "workers=2")
    rows = table(folder)
    assert [int(row["number"]) for row in rows] == list(range(6)) and {row["state"] for row in rows} == {"complete"}
    for row in rows:
        assert float(row["value"]) == float(row["optimizer.lr"]) + 1 / 500  # the last of the run
        assert (tmp_path / row["run"] / "starts").read_text() == f"{folder}\n"  # once, and told whose it is
    best = min(rows, key=lambda row: float(row["value"]))
    said = capfd.readouterr().err
    assert f"best: trial {best['number']}" in said and f"optimizer.lr={best['optimizer.lr']}" in said
    assert len(re.findall(r"^trial \d: ", said, re.MULTILINE)) == 6
    page = (folder / "study.html").read_text()
    for title in ("Optimization History", "Intermediate Values", "Parallel Coordinate", "Slice", "Importances"):
        assert title in page
    assert page.count("Plotly.newPlot(") >= 5 and not re.search(r"<(script|link)[^>]+(src|href)=\"http", page)

    more = tune("trials=8")
    assert more == folder and len(table(folder)) == 8
    assert table(folder)[:6] == rows
    assert all((tmp_path / row["run"] / "starts").read_text().count("\n") == 1 for row in table(folder))


@pytest.mark.slow
def test_the_command_on_the_page_goes_on_with_the_study(tune, tmp_path):
    folder = tune("trials=1", "pruning=false", "optimizer.weight_decay=tag(log,interval(1e-4,1e-2))")
    shown = re.search(r"<pre[^>]*><code>python -m diffusion (.*)</code>", (folder / "study.html").read_text()).group(1)
    diffusion(*shlex.split(html.unescape(shown).replace("trials=1", "trials=2")), f"runs_dir={tmp_path}")
    assert len(table(folder)) == 2


@pytest.mark.slow
def test_the_same_command_makes_the_same_trials(tune, tmp_path, capfd):
    """Over a stop in the middle as well."""
    whole = tune("trials=4")
    cut = tune("trials=4", how="stop", runs=tmp_path / "cut", status=75)
    assert "SIGUSR1: the same command goes on" in capfd.readouterr().err.splitlines()[-1]
    assert [row["state"] for row in table(cut)] == ["running"]
    tune("trials=4", runs=tmp_path / "cut")
    rows = [[{k: v for k, v in row.items() if k != "run"} for row in table(each)] for each in (whole, cut)]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_poor_trial_is_stopped_and_a_failed_one_is_noted(tune, tmp_path):
    folder = tune("trials=16", how="hang")  # where poor ones would take a minute, beyond the sixth
    rows = table(folder)
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned and all(float(row["optimizer.lr"]) > 0.4 and int(row["number"]) >= 5 for row in pruned)
    folder = tune("trials=8", "workers=2", study="fails", how="some fail")
    rows = table(folder)
    for row in rows:
        assert (row["state"] == "failed") == (float(row["optimizer.lr"]) > 0.5)
        assert row["error"] == ("optimizer.lr is too large" if row["state"] == "failed" else "")
    assert {row["state"] for row in rows} == {"failed", "complete"}
    assert "optimizer.lr is too large" in (folder / "study.html").read_text()


@pytest.mark.slow
def test_a_search_in_which_all_fails_ends_early(tune, capfd):
    folder = tune("trials=8", how="fail", status=1)
    lines = capfd.readouterr().err.splitlines()
    assert len(table(folder)) == 3 and "too large" in lines[-1] and str(folder) in lines[-1]
    tune("trials=2", study="few", how="fail", status=1)
    assert "all 2 trials failed" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_killed_trial_goes_on_under_its_number(tune, tmp_path):
    folder = tune("trials=2", how="die")
    rows = table(folder)
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert all((tmp_path / row["run"] / "starts").read_text().count("\n") == 2 for row in rows)


@pytest.mark.slow
def test_a_column_that_is_not_there_is_named_and_nothing_is_lost(tune, tmp_path, capfd):
    tune("trials=2", "metric=val/lss", study="typo", status=2)
    assert "val/loss" in capfd.readouterr().err.splitlines()[-1]
    tune("trials=1", study="right")
    (run,) = (tmp_path / "digits_pixel").iterdir()
    assert len((run / "metrics.csv").read_text().splitlines()) == 6


@pytest.mark.slow
def test_a_mistake_is_one_line(tmp_path, capfd):
    space = "optimizer.lr=interval(0.1,1)"
    for words, said in {
        (): "space=",
        ("space=optimiser",): "optimizer",
        ("space=optimizer", "trials=0"): "trials=0",
        ("space=optimizer", "direction=up"): "direction=up",
        ("space=optimizer", "warmup=-1"): "warmup=-1",
        ("space=optimizer", "run_id=x"): "run_id=x",
        ("optimizer.lrr=interval(0.1,1)",): "optimizer.lrr",
        ("scheduler=choice(edm,cosin)",): "cosine",
        ("network.channels=interval(8,16)",): "network.channels=8.0",
        ("runs_dir=choice(a,b)",): "runs_dir",
        ("objective=choice(edm,simple)",): "eval/kid",
        ("trainer.max_steps=0", space): "trainer.max_steps=0",
        ("optimizer.lr=interval(1,0.1)",): "holds nothing",
        (space, "workers=1,2"): "workers",
    }.items():
        fixed = [f"runs_dir={tmp_path}"] if "runs_dir=choice(a,b)" not in words else []
        assert said in refusal(capfd, diffusion, "tune", "experiment=digits_pixel", *fixed, *words)
    assert "one value" in refusal(capfd, diffusion, "doctor", space)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_word_settles_what_a_ready_space_would_search(tune):
    folder = tune("trials=1", "space=optimizer", "optimizer.weight_decay=0.02", "callbacks.ema.decay=choice(0.5,0.9)")
    (row,) = table(folder)
    assert set(row) - {"number", "state", "value", "seconds", "run", "error"} == {
        "optimizer.lr",
        "callbacks.ema.decay",
        "callbacks.learning_rate.warmup_steps",
    }
    assert 0.1 <= float(row["optimizer.lr"]) <= 1 and row["callbacks.ema.decay"] in ("0.5", "0.9")


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_exactly_the_rest(tmp_path):
    """Real training: the trial at work stops with it, goes on with the next, and ends as if nothing had been."""
    plan = ["trainer.max_steps=60", "trainer.validate_every_n_steps=20", "trainer.log_every_n_steps=3"]
    plan += ["checkpoint.every_n_steps=10"]
    words = [*SMALL, *plan, f"runs_dir={tmp_path}", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "trials=3"]
    command = ["tune", *words, "study=study"]
    folder, runs = tmp_path / "studies" / "study", tmp_path / "digits_pixel"
    first = subprocess.Popen([sys.executable, "-m", "diffusion", *command], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 240
    while len(list(runs.glob("*/checkpoints/last.ckpt"))) < 2:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    done, cut = sorted(runs.iterdir(), key=lambda run: (run / "config.yaml").stat().st_mtime)
    before = (done / "train.log").read_text()

    diffusion(*command)

    rows = table(folder)
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert [tmp_path / row["run"] for row in rows][:2] == [done, cut] and len(list(runs.iterdir())) == 3
    assert (done / "train.log").read_text() == before
    log = (cut / "train.log").read_text()
    assert "stopped by SIGTERM" in log and "continues from step" in log
    reference = start_training(tmp_path / "undisturbed", *plan, f"optimizer.lr={rows[1]['optimizer.lr']}")
    reference.join()
    assert reference.exitcode == 0
    assert_same_run(cut, tmp_path / "undisturbed" / "digits_pixel" / "run")
