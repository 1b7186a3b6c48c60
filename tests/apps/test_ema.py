"""`ema=LENGTH` and `guidance=autoguidance` of a task: which weights are asked; receipts and the cache tell them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion.apps.drawn import draw
from diffusion.apps.tasks import chosen
from diffusion.callbacks.post_hoc_ema import stored
from diffusion.runs import Run
from tests.apps.test_sample import npz_run
from tests.commands import diffusion, refusal, save_samples
from tests.training import run_training

pytestmark = pytest.mark.slow

STEPS = 60
PLAN = [f"trainer.max_steps={STEPS}", "augmentation=none", "optimizer.lr=1e-2", "checkpoint.every_n_steps=30"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Trained with autoguidance as its guidance, which its previews have to do without."""
    return run_training(tmp_path_factory.mktemp("run"), *PLAN, "guidance=autoguidance")


def weights(run: Path, name: str = "last") -> dict:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def assert_close(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.float(), rtol=1e-5, atol=1e-6)


def test_previews_are_drawn_while_it_trains(run):
    assert list((run / "samples").glob("step_*.png"))
    assert OmegaConf.load(run / "config.yaml").guidance._target_ == "diffusion.guidance.Autoguidance"


def test_the_weights_are_those_of_the_length(run):
    content = weights(run)
    found, kept = Run.open(run, ema=0.1).weights(), content["profiles"][0.1]
    assert_close({name: found[name] for name in kept}, kept)
    guided = Run.open(run, ema=0.05).generative().denoiser
    assert_close(dict(guided.denoiser.named_parameters()), content["profiles"][0.05])
    # 0.25 of 60 steps: the nearest snapshot is that of step 20, in half precision.
    snapshot = torch.load(stored(run / "checkpoints" / "ema")[20], weights_only=True)
    assert_close(dict(guided.weak.named_parameters()), snapshot["profiles"][0.1])


def test_a_checkpoint_of_ones_choice_has_averages_of_its_own(run):
    found = Run.open(run, checkpoint="previous", ema=0.1).weights()
    kept = weights(run, "previous")["profiles"][0.1]
    assert_close({name: found[name] for name in kept}, kept)


def test_sample_says_which(run, tmp_path):
    images = {}
    for words in ("", "ema=0.15", "ema=0.15 guidance=none", "guidance=none"):
        out = tmp_path / f"out{len(images)}"
        diffusion("sample", f"run={run}", f"out={out}", "n=3", "device=cpu", *words.split())
        with np.load(out / "samples.npz") as file:
            images[words] = file["images"]
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["ema"] == ({"length": 0.15} if "ema" in words else 0.998)
        # Two steps of the grid, the first of which DPM-Solver++ takes alone: each asks both networks, or one.
        assert metrics["evaluations_per_image"] == (2 if "none" in words else 4)
    first, *others = images.values()
    assert all((first != other).any() for other in others)


def test_the_cache_tells_lengths_and_weak_models_apart(run, tmp_path):
    def from_cache(ema=None, **keys) -> int:
        opened = Run.open(run, ema=ema)
        config = OmegaConf.create({key: opened.config[key] for key in ("sampler", "grid", "guidance")})
        config.seed, config.batch_size = 0, 8
        for key, value in keys.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        images, _, receipt = draw(opened.under(config), config, [1] * 10, 4, tmp_path, torch.device("cpu"))
        assert len(images) == 4
        assert receipt["ema"] == (0.998 if ema is None else {"length": ema})
        assert "_target_" not in json.dumps(receipt["guidance"])
        return receipt["from_cache"]

    settings = [{}, {"ema": 0.15}, {"guidance__weak__at": 0.5}, {"guidance__weak__ema": 0.05}, {"guidance": None}]
    assert [from_cache(**keys) for keys in settings] == [0] * 5
    assert [from_cache(**keys) for keys in settings] == [4] * 5
    # A snapshot that is lost makes another weak model under the same words.
    path = stored(run / "checkpoints" / "ema")[32]
    path.rename(path.with_suffix(".aside"))
    try:
        assert from_cache(guidance__weak__at=0.5) == 0
    finally:
        path.with_suffix(".aside").rename(path)


def test_autoguidance_of_a_model_without_labels(tmp_path):
    run = npz_run(tmp_path, (8, 8))
    line_of = ["guidance=autoguidance", "guidance.weak.at=1", "n=2", "device=cpu", f"out={tmp_path / 'out'}"]
    diffusion("sample", f"run={run}", *line_of)
    assert (tmp_path / "out" / "samples.npz").exists()


def test_the_whole_choice_is_composed():
    assert chosen("guidance", "autoguidance").weak._target_ == "diffusion.models.guides.earlier"


def test_what_is_refused(run, tmp_path, capfd):
    def line(*words: str, task: str = "sample") -> str:
        out = tmp_path / "out"
        said = refusal(capfd, diffusion, task, f"out={out}", "device=cpu", *words)
        assert not out.exists()
        return said

    of = f"run={run}"
    assert "ema=0.5: give the length" in line(of, "ema=0.5")
    assert "ema=long: give the length" in line(of, "ema=long", task="evaluate")
    assert "at=0.01: the first snapshot" in line(of, "guidance.weak.at=0.01")
    assert "ema=0: give the length" in line(of, "guidance.weak.ema=0")
    samples = save_samples(tmp_path / "samples.npz", torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    given = line(f"samples={samples}", "dataset=digits", "ema=0.1", task="audit")
    assert given == "ema=0.1: samples=FILE.npz has none; leave it out"


def test_a_run_without_snapshots(tmp_path, capfd):
    run = run_training(tmp_path, "trainer.max_steps=2", "callbacks.post_hoc_ema.snapshots=0")
    assert not (run / "checkpoints" / "ema").exists() and "profiles" not in weights(run)
    for words in (["ema=0.1"], ["guidance=autoguidance"]):
        said = refusal(capfd, diffusion, "sample", f"run={run}", *words)
        assert "kept no averages" in said and "callbacks.post_hoc_ema.snapshots=16" in said
