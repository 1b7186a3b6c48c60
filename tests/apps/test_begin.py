"""Runs that begin from another run: fine-tuned, or steered by a ControlNet."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.runs import Run
from tests.commands import diffusion, refusal, train_py
from tests.training import SMALL, assert_same_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    train_py(*SMALL, "trainer.max_steps=4", "run_id=base", f"runs_dir={runs}")
    return runs / "digits_pixel" / "base"


def further(base, run_id: str, *words: str) -> Run:
    directory = base.parent / run_id
    # Of the network nothing is said: it is the base's.
    own = [word for word in SMALL if not word.startswith("network.")]
    train_py(*own, "trainer.max_steps=3", f"run_id={run_id}", f"runs_dir={base.parents[1]}", *words)
    return Run.open(directory)


def test_fine_tuned_layers_alone_have_moved(base):
    run = further(base, "last", f"finetune.from={base}", "finetune.unfreeze=last:3", "finetune.lr_decay=0.5")
    assert run.config.network.channels == 8
    before, after = Run.open(base).weights(), run.weights()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("network.up", "network.norm", "network.output")) for name in moved)


@pytest.mark.parametrize("key", ["finetune.unfreeze=last:3", "finetune.lora=2"])
def test_it_goes_on_to_the_bit(base, key):
    """From the checkpoint of step 2, as after a kill, to the same state and losses at step 4."""
    words = ["trainer.max_steps=4", "checkpoint.every_n_steps=2", f"finetune.from={base}", "finetune.lr_decay=0.5", key]
    run = further(base, "cut", *words)
    whole = shutil.copytree(run.directory, base.parents[1] / f"whole {key}")
    (run.directory / "checkpoints" / "previous.ckpt").rename(run.directory / "checkpoints" / "last.ckpt")
    assert Run.open(run.directory).position() == 2
    assert_same_run(further(base, "cut", *words).directory, whole)
    shutil.rmtree(run.directory)


def test_low_rank_updates_are_merged_where_the_run_is_used(base):
    run = further(base, "lora", f"finetune.from={base}", "finetune.lora=2")
    before, after = Run.open(base).weights(), run.weights()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name in after)
    denoiser = run.model.trained_denoiser(run.spec, run.weights())
    assert denoiser.state_dict().keys() == before.keys()
    diffusion("sample", f"run={run.directory}", "n=2")


def digits_of(folder, names, count=6):
    for place, name in enumerate(names):
        for index in range(count):
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([place, index]).integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(pixels).save(path)
    return folder


def test_a_new_class_gets_a_token_and_nothing_else_moves(base, tmp_path):
    data = digits_of(tmp_path / "new", ["3", "another"])
    words = ["dataset=folder", f"dataset.path={data}", "dataset.size=8"]
    run = further(base, "token", f"finetune.from={base}", "finetune.unfreeze=token", *words)
    before, after = Run.open(base).weights(), run.weights()
    label = "network.embedding.label.weight"
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != label)
    assert run.spec.class_names == ("3", "another")
    assert torch.equal(after[label][:, 0], before[label][:, 3]) and torch.equal(
        after[label][:, -1], before[label][:, -1]
    )
    assert not torch.equal(after[label][:, 1], before[label][:, :-1].mean(1))
    diffusion("sample", f"run={run.directory}", "n=2", "label=another")


def test_a_controlnet_is_the_base_until_it_has_learnt(base):
    run = further(base, "steered", "network=controlnet", f"network.base={base}", "control=canny")
    weights = run.weights()
    for name, value in Run.open(base).weights().items():
        if name.startswith("network."):
            assert torch.equal(value, weights[name.replace("network.", "network.trunk.")])
    assert run.config.network.trunk.channels == 8
    assert any((base.parent / "steered" / "samples").glob("step_*.png"))
    tuned = further(base, "tuned", f"finetune.from={run.directory}").weights()
    moved = {name for name, value in weights.items() if not torch.equal(value, tuned[name])}
    assert moved and not any(".trunk." in name for name in moved)


def refused(capfd, *words: str) -> str:
    return refusal(capfd, train_py, *SMALL[:4], "trainer.max_steps=1", *words)


def test_refusals(base, capfd, tmp_path, tmp_path_factory):
    runs, data = f"runs_dir={tmp_path}", tmp_path_factory.mktemp("data")
    assert "finetune.from" in refused(capfd, runs, "finetune.from=/nowhere")
    assert "finetune.from" in refused(capfd, runs, "finetune.lora=4")
    assert "network.base" in refused(capfd, runs, "network=controlnet", "control=canny")
    assert "control=" in refused(capfd, runs, "network=controlnet", f"network.base={base}")
    assert "has its scheduler" in refused(capfd, runs, f"finetune.from={base}", "scheduler=cosine")
    assert "all classes" in refused(capfd, runs, f"finetune.from={base}", "finetune.unfreeze=token")
    assert "finetune.from" in refused(capfd, runs, "finetune.lr_decay=0.5")
    assert "finetune.from" in refused(
        capfd, runs, "network=controlnet", f"network.base={base}", "control=canny", "finetune.lora=2"
    )
    assert "finetune.lora=0" in refused(capfd, runs, f"finetune.from={base}", "finetune.lora=0")
    larger = ["dataset=folder", f"dataset.path={digits_of(data / 'larger', ['3', '4'])}", "dataset.size=32"]
    assert "at this size of images" in refused(capfd, runs, f"finetune.from={base}", *larger)
    steered = ["network=controlnet", f"network.base={base}", "control=canny", *larger]
    assert "network.base: its network does not fit these data" in refused(capfd, runs, *steered)
    assert "lr_decay" in refused(capfd, runs, f"finetune.from={base}", "finetune.lr_decay=2.0")
    assert "masks" in refused(capfd, runs, "control=mask")
    both = ["network=controlnet", f"network.base={base}", f"finetune.from={base}", "control=canny"]
    assert "one other" in refused(capfd, runs, *both)
    assert not any(tmp_path.iterdir())
