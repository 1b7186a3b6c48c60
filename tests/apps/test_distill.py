"""A student of few steps: trained from a run, gone on with, drawn, and refused where it cannot be."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion.apps import tasks
from diffusion.apps.train import train
from diffusion.errors import UserError
from diffusion.grids import Angle
from diffusion.modules import DiffusionModule
from diffusion.runs import Run
from tests.commands import refusal, train_py
from tests.training import AUTOENCODER, SHORT, SMALL, assert_same_run, composed, run_training, state

pytestmark = pytest.mark.slow

STUDENT = ["experiment=digits_pixel", "model=distilled", *SHORT, "model.substeps=3", "callbacks.previews.n=4"]
STEPS = ["trainer.max_steps=4", "checkpoint.every_n_steps=2", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Guided, by the recipe, in an interval of noise levels."""
    return run_training(tmp_path_factory.mktemp("teacher"), "trainer.max_steps=4")


def distilled(runs, teacher, *words: str):
    return run_training(runs, f"model.teacher={teacher}", *STEPS, *words, base=STUDENT)


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    return distilled(tmp_path_factory.mktemp("student"), teacher)


def test_it_is_of_its_teachers_parts_and_of_its_own_steps(student, teacher):
    run, base = Run.open(student), Run.open(teacher)
    for group in ("network", "scheduler", "parameterization", "codec", "control"):
        assert run.config[group] == base.config[group]
    assert run.config.data.teacher_fingerprint == base.fingerprint() and run.config.data.std == base.config.data.std
    assert run.config.sampler._target_ == "diffusion.samplers.ddim" and run.config.grid.steps == 4
    assert not run.config.guidance and not run.config.objective
    assert (student / "samples" / "step_0000004.png").is_file()


def test_it_learns_from_the_guided_teacher_which_stays_as_it_is(teacher, tmp_path, monkeypatch):
    """The teacher is asked under its own guidance, without gradients; nothing of it is saved, averaged or optimized."""
    seen, before = [], state(teacher)
    step = DiffusionModule.training_step

    def watched(module, *batch):
        seen.append((module, {name: p.clone() for name, p in module.denoiser.state_dict().items()}))
        return step(module, *batch)

    monkeypatch.setattr(DiffusionModule, "training_step", watched)
    run = Run.open(distilled(tmp_path, teacher))
    module, begun_as = seen[0]
    taught_by = module.objective.teacher
    assert type(taught_by).__name__ == "ClassifierFree" and taught_by.interval.low == 0.2
    weights = Run.open(teacher).weights()
    for denoiser in (begun_as, taught_by.denoiser.state_dict()):
        assert denoiser.keys() == weights.keys() and all(torch.equal(denoiser[k], weights[k]) for k in weights)
    assert not any(part.training or part in set(module.modules()) for part in taught_by.modules())
    assert not any(p.requires_grad or p.grad is not None for p in taught_by.parameters())
    found = state(run.directory)
    plain = state(teacher)
    assert found.keys() == plain.keys() and all(torch.equal(value, before[name]) for name, value in plain.items())
    assert any(not torch.equal(run.weights()[name], weights[name]) for name in weights)


def test_it_goes_on_to_the_bit(student, teacher, tmp_path):
    """From the checkpoint of step 2, as after a kill, with a teacher that has moved."""
    cut = shutil.copytree(student.parents[1], tmp_path / "runs") / "digits_pixel" / "run"
    (cut / "checkpoints" / "previous.ckpt").rename(cut / "checkpoints" / "last.ckpt")
    assert Run.open(cut).position() == 2
    moved = shutil.copytree(teacher, tmp_path / "moved")
    assert_same_run(distilled(tmp_path / "runs", moved), student)


def test_it_does_not_go_on_with_another_teacher(student, teacher, tmp_path):
    runs = shutil.copytree(student.parents[1], tmp_path / "runs")
    other = shutil.copytree(teacher, tmp_path / "other")
    content = torch.load(other / "checkpoints" / "last.ckpt", weights_only=True)
    next(iter(content["ema"].values())).mul_(1.001)
    torch.save(content, other / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="not the one with which this run began"):
        distilled(runs, other, "trainer.max_steps=6")
    with pytest.raises(UserError, match=r"model\.grid\.steps: 4 -> 2"):
        distilled(runs, teacher, "model.grid.steps=2")


def test_an_image_costs_one_evaluation_a_step(student):
    generative = Run.open(student).generative()
    calls = []
    generative.denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    images = generative.sample((1, 8, 8), {"label": torch.tensor([1, 2])}, seeds=[0, 1])
    assert len(calls) == 4 and images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "n=3"],
        ["evaluate", "n=20", "extractor=random"],
        ["report", "n=1"],
        ["translate", "n=2", "classifier=false"],
        ["inpaint", "n=2", "samples=1"],
        ["audit", "n=20", "members=10", "extractor=random"],
    ],
    ids=lambda words: words[0],
)
def test_tasks_draw_in_its_own_steps(student, words, tmp_path):
    tasks.main([*words, f"run={student}", f"out={tmp_path / 'out'}", "device=cpu"])
    if words[0] == "evaluate":
        receipt = json.loads((tmp_path / "out" / "metrics.json").read_text())["receipt"]["generated"]
        assert receipt["sampler"]["name"] == "ddim" and receipt["grid"]["steps"] == 4 and receipt["guidance"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "sampler=heun"], "by ddim"),
        (["sample", "grid.steps=2"], "steps that it has learnt"),
        (["sample", "guidance=2"], "guidance"),
        (["denoise"], "not the mean"),
        (["likelihood"], "not the mean"),
        (["restore", "operator=blur", "sampler=ddim"], "not the mean"),
        (["tune_grid", "steps=2"], "steps that it has learnt"),
        (["anomaly", "normal=[1]"], "method=redraw"),
        (["export", "to=diffusers"], "export its teacher"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_a_student_cannot_do_is_left_to_its_teacher(student, teacher, words, said, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        tasks.main([*words, f"run={student}", f"out={tmp_path / 'out'}"])
    assert str(teacher) in str(error.value)


def refused(tmp_path, *words: str) -> str:
    with pytest.raises(UserError) as error:
        train(composed([*STUDENT, "trainer.max_steps=1", f"runs_dir={tmp_path / 'runs'}", "run_id=run", *words]))
    assert not (tmp_path / "runs").exists()
    return str(error.value)


def altered(teacher, folder, **values):
    """The teacher, as if its config had said something else."""
    run = shutil.copytree(teacher, folder / f"altered{len(list(folder.iterdir()))}")
    config = OmegaConf.load(run / "config.yaml")
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value, merge=False, force_add=True)
    OmegaConf.save(config, run / "config.yaml")
    return run


def test_refusals(teacher, student, tmp_path):
    assert "needs model.teacher=RUN_DIR" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path, "model.teacher=/nowhere")
    from_it = f"model.teacher={teacher}"
    assert "begins from one other" in refused(tmp_path, from_it, f"finetune.from={teacher}")
    assert "has its scheduler" in refused(tmp_path, from_it, "scheduler=cosine")
    assert "has its network" in refused(tmp_path, from_it, "network.channels=8")
    assert "use model.grid.steps=2" in refused(tmp_path, from_it, "grid.steps=2")
    for group in ("sampler=heun", "guidance=classifier_free", "objective=edm"):
        assert f"no {group.split('=')[0]}" in refused(tmp_path, from_it, group)
    assert "give its teacher" in refused(tmp_path, f"model.teacher={student}")
    one = altered(teacher, tmp_path, objective=composed(["objective=one_level"]).objective)
    assert "single noise level" in refused(tmp_path, f"model.teacher={one}")
    learned = altered(teacher, tmp_path, objective=composed(["objective=edm_hybrid"]).objective)
    assert "covariance" in refused(tmp_path, f"model.teacher={learned}")
    led = altered(teacher, tmp_path, model__condition=[], guidance=composed(["guidance=classifier"]).guidance)
    assert "not told" in refused(tmp_path, f"model.teacher={led}")
    known = altered(teacher, tmp_path, model__known="mask")
    assert "model.known" in refused(tmp_path, f"model.teacher={known}")


def test_other_data_are_refused(teacher, tmp_path):
    from_it = f"model.teacher={teacher}"
    assert "images of shape (1, 8, 8)" in refused(tmp_path, from_it, "dataset=tissue", "dataset.stride=8")
    assert "these data are" in refused(tmp_path, from_it, "dataset.only=[1,2]")


def test_nothing_begins_from_a_student(student, tmp_path):
    with pytest.raises(UserError, match="give its teacher"):
        run_training(
            tmp_path, "trainer.max_steps=1", f"finetune.from={student}", base=[w for w in SMALL if "network" not in w]
        )


def test_no_diffusion_run_is_no_teacher(tmp_path):
    autoencoder = run_training(tmp_path, "trainer.max_steps=1", base=AUTOENCODER)
    assert "diffusion model" in refused(tmp_path / "student", f"model.teacher={autoencoder}")


def test_one_line_is_said(capfd, tmp_path):
    line = refusal(capfd, train_py, *STUDENT, "trainer.max_steps=1", f"runs_dir={tmp_path}")
    assert line.startswith("model=distilled needs model.teacher=RUN_DIR")


def test_a_latent_and_a_steered_teacher(tmp_path):
    autoencoder = run_training(tmp_path, "trainer.max_steps=2", base=AUTOENCODER)
    few = ["trainer.max_steps=2", f"codec.run={autoencoder}", "grid.steps=2"]
    latent = run_training(tmp_path, *few, base=[*SMALL, "experiment=digits_latent"])
    run = Run.open(distilled(tmp_path / "latent", latent, "experiment=digits_latent"))
    assert run.config.data.codec_fingerprint == Run.open(latent).config.data.codec_fingerprint is not None
    tasks.main(["sample", f"run={run.directory}", "n=2", "device=cpu"])
    assert np.load(run.directory / "sample" / "samples.npz")["images"].shape == (2, 8, 8, 1)
    steered = run_training(tmp_path / "steered", "trainer.max_steps=2", "control=canny")
    run = Run.open(distilled(tmp_path / "student", steered))
    assert run.config.control and any((run.directory / "samples").glob("step_*.png"))
    tasks.main(["sample", f"run={run.directory}", "n=2", "device=cpu"])


def test_doctor_looks_at_a_student(teacher, tmp_path):
    words = [f"model.teacher={teacher}", "trainer.max_steps=4", "seconds=0.3", f"out={tmp_path / 'out'}"]
    tasks.main(["doctor", *STUDENT, *words, f"runs_dir={tmp_path}"])
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_a_student_arrives_where_its_teacher_does_in_many_steps(tmp_path):
    """From the same noise: nearer to the teacher's 64 steps of DDIM than the teacher itself in the student's two."""
    few = ["optimizer.lr=0.003", "callbacks.ema.decay=0.9", "callbacks.learning_rate.warmup_steps=10"]
    teacher = run_training(tmp_path / "teacher", "trainer.max_steps=80", "network.dropout=0", *few)
    words = [f"model.teacher={teacher}", "trainer.max_steps=60", "model.grid.steps=2", "model.substeps=4", *few]
    student = Run.open(run_training(tmp_path / "student", *words, base=STUDENT)).generative()
    guided = Run.open(teacher).generative()

    def drawn(denoiser, grid) -> torch.Tensor:
        cond = {"label": torch.arange(64) % 10}
        return replace(student, denoiser=denoiser, grid=grid).sample((1, 8, 8), cond, seeds=range(64))

    wanted = drawn(guided.denoiser, Angle(64))
    own, taught = (
        (drawn(denoiser, student.grid) - wanted).square().mean().sqrt()
        for denoiser in (guided.denoiser, student.denoiser)
    )
    assert taught < 0.8 * own, f"{taught:.3f} of {own:.3f}"
