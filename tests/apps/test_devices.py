"""Several processes make the run that one makes: its losses, its samples, its stops; however many they are."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.apps.config import CONF
from diffusion.callbacks import EMA
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.runs import Run, flat
from tests.commands import diffusion, refusal, train_py
from tests.training import SMALL, as_torchrun, join, losses, run_training, start_together, started, state

pytestmark = pytest.mark.slow

PLAN = [
    "batch_size=32",
    "network.dropout=0",
    "trainer.log_every_n_steps=1",
    "trainer.validate_every_n_steps=20",
    "checkpoint.every_n_steps=20",
    "callbacks.previews.every_n_steps=1000",
    "callbacks.previews.n=64",
    "callbacks.post_hoc_ema.snapshots=2",
    "callbacks.ema._target_=tests.apps.test_devices.Watched",
    "optimizer.lr=1e-3",
]
STEPS = 50


class Watched(EMA):
    """Writes down the samples of each batch, and at the end what this process has learnt.

    TOLD in the environment, as "rank step signal", has that process signal itself in that step.
    """

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if "TOLD" in os.environ:
            rank, step, number = map(int, os.environ["TOLD"].split())
            if (trainer.global_rank, trainer.global_step) == (rank, step):
                os.kill(os.getpid(), number)
        with (Path(trainer.default_root_dir) / f"ids_{trainer.global_rank}.txt").open("a") as file:
            file.write(" ".join(map(str, [trainer.global_step, *batch["id"].tolist()])) + "\n")

    def on_train_end(self, trainer, module):
        profiles = next(c for c in trainer.callbacks if type(c).__name__ == "PostHocEMA").averages
        learnt = {"weights": module.trained.state_dict(), "ema": self.average, "profiles": profiles}
        torch.save(learnt, Path(trainer.default_root_dir) / f"learnt_{trainer.global_rank}.pt")


def order(run: Path) -> list[list[int]]:
    """The samples of each step, in the order of the processes and their accumulated batches."""
    files = [[list(map(int, line.split())) for line in path.open()] for path in sorted(run.glob("ids_*.txt"))]
    steps: dict[int, list[int]] = {}
    for batches in zip(*files, strict=True):
        for step, *ids in batches:
            steps.setdefault(step, []).extend(ids)
    return [steps[step] for step in range(len(steps))]


def learnt(run: Path, rank: int) -> dict[str, torch.Tensor]:
    content = torch.load(run / f"learnt_{rank}.pt", weights_only=True)
    groups = {"ema": content["ema"], "weights": content["weights"]}
    groups |= {f"profiles {length}": values for length, values in content["profiles"].items()}
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def assert_near(run: Path, reference: Path, bound: float = 1e-5) -> None:
    """The same rows in metrics.csv, the same state; numbers may differ by `bound`."""
    found, wanted = losses(run), losses(reference)
    assert [row.keys() for row in found] == [row.keys() for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        numbers, others = ({key: float(value) for key, value in each.items() if value} for each in (row, other))
        assert numbers == pytest.approx(others, rel=0, abs=bound), row["step"]
    found, wanted = state(run), state(reference)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if not name.startswith("optimizer"):
            torch.testing.assert_close(found[name], value, rtol=0, atol=bound, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process."""
    return run_training(tmp_path_factory.mktemp("alone"), *PLAN, f"trainer.max_steps={STEPS}")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The same of two, which share the batch; validation has three batches, so the second lacks one."""
    folder = tmp_path_factory.mktemp("two")
    assert join(start_together(folder, *PLAN, f"trainer.max_steps={STEPS}", count=2)) == [0, 0]
    return folder / "digits_pixel" / "run"


def test_two_processes_see_the_samples_that_one_sees_in_its_order(alone, two):
    assert len(list(two.glob("ids_*.txt"))) == 2
    assert order(two) == order(alone) and len(order(two)) == STEPS


def test_two_processes_have_the_losses_and_the_weights_of_one(alone, two):
    rows = [row for row in read_rows(two / "metrics.csv") if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert_near(two, alone)


def test_two_processes_draw_the_samples_of_one(alone, two):
    labels = {"label": torch.arange(64) % 10}
    images = [Run.open(run).generative().sample((1, 8, 8), labels, seeds=range(64)) for run in (two, alone)]
    assert (images[0] - images[1]).abs().max() < 1e-5
    files = [run / "samples" / f"{kind}_{STEPS:07d}.png" for kind in ("step", "denoising") for run in (two, alone)]
    assert all(path.stat().st_size > 1000 for path in files)


def test_all_processes_hold_the_same_to_the_bit(two):
    first, second = learnt(two, 0), learnt(two, 1)
    assert first.keys() == second.keys() and any(name.startswith("profiles") for name in first)
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_a_limit_of_time_ends_all_processes_at_the_same_step_with_the_same_weights(tmp_path):
    """The learning rate follows the clock, and each process has its own."""
    plan = [*PLAN, "trainer.max_time=00:00:00:04", "callbacks.learning_rate.warmup_steps=1"]
    assert join(start_together(tmp_path, *plan, count=2)) == [0, 0]
    run = tmp_path / "digits_pixel" / "run"
    first, second = learnt(run, 0), learnt(run, 1)
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    rates = [float(row["train/learning_rate"]) for row in read_rows(run / "metrics.csv") if row["train/loss"]]
    assert len(rates) > 5 and rates[-1] < 0.3 * rates[0]


def test_a_run_is_stopped_and_goes_on_with_other_numbers_of_processes(tmp_path):
    """Two, one, four, one. A signal comes to one of them alone, at steps that are no multiples of anything here."""
    plan = [*PLAN, "trainer.log_every_n_steps=5", "trainer.validate_every_n_steps=9", "checkpoint.every_n_steps=8"]
    plan += ["trainer.max_steps=40"]
    for count, told in ((2, (1, 7)), (1, (0, 13)), (4, (0, 31))):
        rank, step = told
        processes = start_together(tmp_path, *plan, count=count, told={"TOLD": f"{rank} {step} {signal.SIGTERM:d}"})
        assert join(processes) == [75] * count
        run = Run.open(tmp_path / "digits_pixel" / "run")
        assert run.position(run.checkpoints / "last.ckpt") == step + 1
    assert join(start_together(tmp_path, *plan, count=1)) == [0]
    whole = run_training(tmp_path / "whole", *plan)
    assert_near(run.directory, whole)
    rows = read_rows(run.directory / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [9, 18, 27, 36, 40]
    said = re.findall(r"processes: .*", (run.directory / "train.log").read_text())
    assert said == [
        "processes: 1 (began with 2), accumulated batches: 2 (began with 1), of 16 images in each process",
        "processes: 4 (began with 2), accumulated batches: 1 (began with 1), of 8 images in each process",
        "processes: 1 (began with 2), accumulated batches: 2 (began with 1), of 16 images in each process",
    ]


def test_a_process_that_dies_ends_the_others_soon(tmp_path):
    began = time.monotonic()
    processes = start_together(tmp_path, *PLAN, "trainer.max_steps=100", count=2, told={"TOLD": "1 23 9"})
    assert join(processes) == [1, -signal.SIGKILL]
    assert time.monotonic() - began < 60
    assert Run.open(tmp_path / "digits_pixel" / "run").position() == 20


def test_weights_that_are_dealt_out_are_those_of_one_process(tmp_path, alone):
    """accelerator=gpu_fsdp, on the CPU: begun so, gone on with by one process, and so again."""
    plan = [*PLAN, f"trainer.max_steps={STEPS}"]
    sharded = ["accelerator.accelerator=cpu", "accelerator.precision=32-true"]
    for count, step in ((2, 13), (1, 29), (2, None)):
        told = {"TOLD": f"0 {step} {signal.SIGTERM:d}"} if step else {}
        kind = {"accelerator": "gpu_fsdp"} if count == 2 else {}
        processes = start_together(tmp_path, *plan, *(sharded if kind else ()), count=count, told=told, **kind)
        assert join(processes) == [75 if step else 0] * count
    assert_near(tmp_path / "digits_pixel" / "run", alone)
    content = torch.load(tmp_path / "digits_pixel" / "run" / "learnt_0.pt", weights_only=False)
    dealt = [value.to_local().shape[0] for value in content["ema"].values()]
    assert sum(a < b.shape[0] for a, b in zip(dealt, content["ema"].values(), strict=True)) > len(dealt) / 2


def test_torchrun_on_two_machines(tmp_path, alone):
    """Both are this one: the command as a user types it."""
    (environment,) = as_torchrun(1)
    words = [*SMALL, *PLAN, f"trainer.max_steps={STEPS}", f"runs_dir={tmp_path}", "run_id=run", "accelerator=cpu_ddp"]
    where = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    where += [f"--master-port={environment['MASTER_PORT']}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where]
    nodes = [
        subprocess.Popen([*torchrun, f"--node-rank={rank}", "train.py", *words], cwd=CONF.parent) for rank in (0, 1)
    ]
    assert [node.wait(120) for node in nodes] == [0, 0]
    assert_near(tmp_path / "digits_pixel" / "run", alone)


def _task(environment: dict[str, str], words: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    diffusion(*words)


def test_tasks_draw_the_images_of_one_process(tmp_path, alone):
    """17 of three processes, in batches of four: the last one has fewer."""
    words = ["sample", f"run={alone}", "n=17", "batch_size=4", "device=cpu"]
    diffusion(*words, f"out={tmp_path / 'one'}")
    assert join([started(_task, e, [*words, f"out={tmp_path / 'three'}"]) for e in as_torchrun(3)]) == [0, 0, 0]
    one, three = (np.load(tmp_path / name / "samples.npz") for name in ("one", "three"))
    assert np.array_equal(one["labels"], three["labels"]) and one["images"].shape == (17, 8, 8, 1)
    assert np.abs(one["images"].astype(int) - three["images"]).max() <= 1
    assert {path.name for path in (tmp_path / "three").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }


def test_evaluate_judges_the_images_of_one_process(tmp_path, alone):
    words = ["evaluate", f"run={alone}", "n=21", "batch_size=8", "device=cpu", "extractor=random"]
    found = []
    for name, count in (("one", 1), ("two", 2)):
        own = [*words, f"out={tmp_path / name}", f"cache={tmp_path / f'cache_{name}'}"]
        assert join([started(_task, environment, own) for environment in as_torchrun(count)]) == [0] * count
        found.append(json.loads((tmp_path / name / "metrics.json").read_text())["metrics"])
    assert flat(found[0]) == pytest.approx(flat(found[1]), rel=1e-3, abs=1e-3, nan_ok=True)


def test_evaluation_while_training_is_of_the_images_of_all_processes(tmp_path):
    plan = [*PLAN, "extractor=random", "callbacks.evaluation.every_n_steps=2", "callbacks.evaluation.n=21"]
    plan += ["trainer.validate_every_n_steps=2", "trainer.max_steps=2"]
    assert join(start_together(tmp_path / "two", *plan, count=2)) == [0, 0]
    assert_near(tmp_path / "two" / "digits_pixel" / "run", run_training(tmp_path / "one", *plan), bound=1e-4)


def test_more_processes_than_validation_batches(tmp_path):
    """Two batches of validation for four processes: what two of them validate counts for nothing, and none waits."""
    plan = [*PLAN, "batch_size=48", "trainer.max_steps=3"]
    assert join(start_together(tmp_path / "four", *plan, count=4)) == [0] * 4
    assert_near(tmp_path / "four" / "digits_pixel" / "run", run_training(tmp_path / "one", *plan))


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["accelerator=cpu_ddp", "batch_size=15"], {}, "batch_size=15 cannot be shared by 2 processes"),
        (["accelerator=cpu_ddp"], {"WORLD_SIZE": "2", "RANK": "0"}, "run_id=NAME"),
        (["accelerator=cpu", "run_id=run"], as_torchrun(2)[0], "use accelerator=gpu_ddp or cpu_ddp"),
        (["accelerator=cpu_ddp", "accelerator.devices=3", "run_id=run", "batch_size=12"], as_torchrun(2)[0], "2 proc"),
        (
            ["accelerator=gpu_fsdp", "accelerator.accelerator=cpu", "accelerator.devices=2", "scheduler=learned"],
            {},
            "accelerator=gpu_ddp",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(monkeypatch, capfd, tmp_path, words, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    objective = ["objective=elbo"] if "scheduler=learned" in words else []
    line = refusal(capfd, train_py, *SMALL, "trainer.max_steps=1", f"runs_dir={tmp_path / 'runs'}", *words, *objective)
    assert said in line and not (tmp_path / "runs" / "digits_pixel").exists()


def test_a_task_for_one_process_is_refused_to_several(monkeypatch, capfd, alone):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "leave torchrun out" in refusal(capfd, diffusion, "report", f"run={alone}")
