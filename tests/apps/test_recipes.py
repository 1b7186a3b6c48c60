"""Choices that change how a run trains: precision, clipping, conditions."""

import pytest
import torch

from diffusion.apps import tasks
from diffusion.errors import UserError
from diffusion.modules import DiffusionModule
from diffusion.runs import Run
from tests.training import run_training, state

SHORT = ["trainer.max_steps=2", "trainer.log_every_n_steps=1"]


@pytest.mark.slow
def test_bfloat16_trains_beside_clipping_and_a_fused_optimizer(tmp_path):
    run = run_training(tmp_path, *SHORT, "accelerator.precision=bf16-mixed")
    assert all(torch.isfinite(value.float()).all() for value in state(run).values())


@pytest.mark.slow
@pytest.mark.parametrize("bound", [1e-3, 1e3])
def test_the_norm_of_the_gradient_is_clipped(monkeypatch, tmp_path, bound):
    norms = []
    clip = DiffusionModule.configure_gradient_clipping

    def clip_and_note(module, *arguments, **named):
        clip(module, *arguments, **named)
        norms.append(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in module.network.parameters()])))

    monkeypatch.setattr(DiffusionModule, "configure_gradient_clipping", clip_and_note)
    run_training(tmp_path, *SHORT, f"trainer.gradient_clip_val={bound}")
    assert len(norms) == 2
    assert all(norm <= bound * 1.001 for norm in norms)
    assert bound > 1 or max(norms) > bound * 0.99


@pytest.mark.slow
def test_a_recipe_with_guidance_runs_without_its_condition(tmp_path):
    run = run_training(tmp_path, *SHORT, "model.condition=[]")
    tasks.main(["sample", f"run={run}", "n=2", "device=cpu"])
    assert (run / "sample" / "samples.npz").is_file()
    with pytest.raises(UserError, match="without labels"):
        tasks.main(["sample", f"run={run}", "n=2", "guidance=2", f"out={tmp_path}/guided", "device=cpu"])


def test_guidance_needs_dropped_labels(tmp_path):
    with pytest.raises(UserError, match=r"model\.label_dropout above 0"):
        run_training(tmp_path, *SHORT, "model.label_dropout=0")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_damaged_checkpoint_never_replaces_the_whole_one_before_it(tmp_path):
    run = run_training(tmp_path, "trainer.max_steps=4", "checkpoint.every_n_steps=2")
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    Run.open(run).set_damaged_aside()
    assert not last.exists()
    assert Run.open(run).newest_checkpoint().name == "previous.ckpt"
    assert run_training(tmp_path, "trainer.max_steps=4", "checkpoint.every_n_steps=2") == run
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert torch.load(run / "checkpoints" / "previous.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_a_run_id_is_what_was_typed(tmp_path):
    assert run_training(tmp_path, *SHORT, "run_id=2024_01_01").name == "2024_01_01"
