"""`python -m diffusion export`: other software draws the same images; what has no equivalent there is refused."""

import csv
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from datamodules.batch import DataSpec
from diffusion.apps import tasks
from diffusion.apps.export.places import without_places
from diffusion.denoiser import Denoiser
from diffusion.runs import Run, data_section
from diffusion.samplers import ddim, ddpm
from diffusion.tasks.export import betas
from tests.analytic import randomise
from tests.commands import diffusion, refusal
from tests.training import SMALL, built, composed, run_training

pytestmark = pytest.mark.slow

diffusers = pytest.importorskip("diffusers")
GREY = DataSpec(shape=(1, 8, 8), classes=None)
CLASSES = DataSpec(shape=(3, 8, 12), classes=3, class_names=("a", "b", "c"))
THEIRS = [*SMALL, "experiment=digits_diffusers", "network.head_channels=4"]


def run_of(folder: Path, *words: str, spec: DataSpec = GREY, base: list[str] = THEIRS) -> Path:
    """A run with random weights, as training would leave it; it takes no time."""
    config = composed([*base, f"runs_dir={folder / 'secret' / 'place'}", *words])
    with torch.random.fork_rng():
        _, module = built(config, spec, std=0.5)
    randomise(module.denoiser.network)
    directory = folder / "run"
    (directory / "checkpoints").mkdir(parents=True)
    config = OmegaConf.create({**OmegaConf.to_container(config, resolve=True), "run_id": "run", "wandb_id": None})
    if spec.classes is None:
        config.guidance = None
    config.data = data_section(spec, 0.5, "0123456789abcdef")
    OmegaConf.save(config, directory / "config.yaml")
    content = {"ema": module.denoiser.state_dict(), "global_step": 3}
    content["callbacks"] = {"Budget": {"elapsed": 61.0, "ended": False}}
    torch.save(content, directory / "checkpoints" / "last.ckpt")
    return directory


def export(run: Path, to: str, *words: str) -> Path:
    """The folder of an export that differs from its run by less than 1e-5."""
    tasks.main(["export", f"run={run}", f"to={to}", "n=2", *words])
    out = run / "export" / to
    found = json.loads((out / "metrics.json").read_text())
    assert found["largest_difference"] < 1e-5
    with (out / "cases.csv").open() as file:
        assert max(float(row["largest_difference"]) for row in csv.DictReader(file)) <= 1e-5
    assert (out / "samples.png").is_file()
    return out


def said_by(out: Path) -> dict:
    """What is there after the lines of Python on the card."""
    (block,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(block.replace("FOLDER", str(out)), names)
    return names


def denoiser_of(run: Path) -> Denoiser:
    return Run.open(run).under(OmegaConf.create({"guidance": None})).generative().denoiser


def noise(n: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(5))


def grid(steps: int) -> torch.Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def drawn(pipeline, n: int, steps: int) -> torch.Tensor:
    """What a pipeline of diffusers draws, in [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    return pipeline(n, generator, num_inference_steps=steps, output_type="pt").images * 2 - 1


UNSCALED = "parameterization.scale_input=false"
# Random answers divided by an alpha of 0.006 would be images of a contrast of 100: eps has schedules that end earlier.
CELLS = [
    ("table_linear", "v"),
    ("table_linear", "eps", "scheduler.betas.end=0.004"),
    ("table_linear", "x0"),
    ("zero_terminal", "v"),
    ("cosine", "x0"),
    ("linear", "eps", "scheduler.beta_max=4.0"),
    ("table_scaled_linear", "eps", "scheduler.betas.end=0.004"),
    ("shifted", "v"),
    ("table_cosine", "v"),
    ("sigmoid", "v"),
]


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=[pytest.mark.slow] * (i > 0), id="-".join(cell[:2])) for i, cell in enumerate(CELLS)],
)
@torch.no_grad()
def test_ddim_of_the_pipeline_draws_the_same_images(cell, tmp_path):
    """From the same noise, before rounding, to 1e-5, for several numbers of steps."""
    scheduler, parameterization, *words = cell
    run = run_of(tmp_path, f"scheduler={scheduler}", f"parameterization={parameterization}", UNSCALED, *words)
    out, denoiser = export(run, "diffusers"), denoiser_of(run)
    pipeline = diffusers.DDIMPipeline.from_pretrained(out, low_cpu_mem_usage=False)
    for steps in (10, 40):
        ours = ddim(denoiser, noise(2, GREY.shape), grid(steps)).clamp(-1, 1)
        torch.testing.assert_close(drawn(pipeline, 2, steps), ours, rtol=0, atol=1e-5)
        assert ours.std() > 0.1 and (ours.abs() < 1).float().mean() > 0.1


@torch.no_grad()
def test_ddpm_of_the_pipeline_takes_the_same_steps(tmp_path):
    """Ancestral steps, both drawing their noise from one generator."""
    run = run_of(tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(export(run, "diffusers"), low_cpu_mem_usage=False)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((2, *GREY.shape), generator=generator)
    ours = ddpm(denoiser_of(run), x, grid(20), rng=lambda shape: torch.randn((2, *shape), generator=generator))
    torch.testing.assert_close(drawn(pipeline, 2, 20), ours.clamp(-1, 1), rtol=0, atol=1e-5)
    assert len(said_by(run / "export" / "diffusers")["images"]) == 16
    assert type(diffusers.DiffusionPipeline.from_pretrained(run / "export" / "diffusers")).__name__ == "DDPMPipeline"


@pytest.mark.parametrize(("label", "cond"), [("b", {"label": 1}), ("2", {"label": 2}), ("none", None)])
@torch.no_grad()
def test_one_class_of_a_conditional_run(label, cond, tmp_path):
    """Its embedding goes into a bias; sides that differ, and three channels."""
    run = run_of(tmp_path, "model.condition=[label]", spec=CLASSES)
    pipeline = diffusers.DDIMPipeline.from_pretrained(export(run, "diffusers", f"label={label}"))
    assert pipeline.unet.config.num_class_embeds is None and pipeline.unet.config.sample_size == [8, 12]
    cond = {"label": torch.full((2,), cond["label"])} if cond else None
    ours = ddim(denoiser_of(run), noise(2, CLASSES.shape), grid(10), cond).clamp(-1, 1)
    torch.testing.assert_close(drawn(pipeline, 2, 10), ours, rtol=0, atol=1e-5)


def test_training_begins_from_what_was_exported(tmp_path, capfd):
    """The averaged weights of a trained run, out and in again; once begun, the new run needs the folder no more."""
    run = run_training(tmp_path / "a", "trainer.max_steps=3", base=THEIRS)
    out = export(run, "diffusers")
    ema = {name: value.clone() for name, value in Run.open(run).weights().items()}
    words = [f"network.pretrained={out}", "trainer.max_steps=1", "optimizer.lr=1e-12"]
    again = run_training(tmp_path / "b", *words, base=THEIRS)
    assert OmegaConf.load(again / "config.yaml").network.architecture.block_out_channels == [8, 16]
    for name, value in Run.open(again).weights().items():
        torch.testing.assert_close(value, ema[name], rtol=0, atol=1e-6)
    out.rename(tmp_path / "moved")
    tasks.main(["sample", f"run={again}", "n=2", "device=cpu"])
    said = refusal(capfd, diffusion, "export", f"run={again}", "to=diffusers", "label=1")
    assert "trained without labels" in said


def test_the_betas_are_those_of_the_table(tmp_path):
    run = run_of(tmp_path)
    table = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(betas(denoiser_of(run), 1000), table, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("words", "spec", "said"),
    [
        (["network=tiny", "network.channels=8"], GREY, "network=unet_diffusers"),
        (["network=tiny", "network.channels=8"], DataSpec(shape=(1, 8, 8, 8), classes=None), "2-D"),
        (["scheduler=edm"], GREY, "EDM has no table of betas"),
        (["scheduler=flow"], GREY, "Flow has no table of betas"),
        (["parameterization=edm"], GREY, "EDM has no name in the diffusers library"),
        (["parameterization=flow"], GREY, "Flow has no name in the diffusers library"),
        (["parameterization.scale_input=true"], GREY, "parameterization.scale_input=false"),
        (["objective=hybrid"], GREY, "learned covariance"),
        ([], DataSpec(shape=(1, 7, 8), classes=None), "7 x 8 are padded"),
        (["model.condition=[label]"], CLASSES, "label=0 ... label=2 or its name, .* label=none"),
        (["model.condition=[label]", "+label=3"], CLASSES, "label=3: give a class from 0 to 2"),
        (["model.condition=[label]", "model.label_dropout=0", "+label=none"], CLASSES, "label_dropout above 0"),
    ],
)
def test_what_diffusers_has_no_equivalent_of_is_refused(words, spec, said, tmp_path, capfd):
    own = [word[1:] for word in words if word.startswith("+")]
    run = run_of(tmp_path, *(word for word in words if not word.startswith("+")), spec=spec)
    line = refusal(capfd, diffusion, "export", f"run={run}", "to=diffusers", *own)
    assert re.search(said, line) and not (run / "export").exists()


def test_what_is_no_export_is_refused(tmp_path, capfd, monkeypatch):
    run = run_of(tmp_path)
    assert "diffusers, safetensors, onnx" in refusal(capfd, diffusion, "export", f"run={run}")
    assert "diffusers, safetensors, onnx" in refusal(capfd, diffusion, "export", f"run={run}", "to=keras")
    assert "n=0" in refusal(capfd, diffusion, "export", f"run={run}", "to=onnx", "n=0")
    assert "leave it out" in refusal(capfd, diffusion, "export", f"run={run}", "to=safetensors", "label=1")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = refusal(capfd, diffusion, "export", f"run={run}", "to=onnx")
    assert "pip install onnx onnxruntime onnxscript" in said
    assert not (run / "export").exists()


OWN = [*SMALL, "network.head_channels=4", "grid.steps=3"]


@pytest.mark.parametrize(
    "spec",
    [
        GREY,
        CLASSES,
        DataSpec(shape=(1, 4, 6, 5), classes=None),
    ],
    ids=["2-D", "classes", "3-D"],
)
def test_safetensors_are_a_run_again(spec, tmp_path):
    run = run_of(tmp_path, spec=spec, base=OWN)
    out = export(run, "safetensors")
    weights, again = Run.open(run).weights(), Run.open(out).weights()
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    assert Run.open(out).fingerprint() == Run.open(run).fingerprint() and Run.open(out).position() == 3
    cond = {"label": torch.tensor([2, 0])} if spec.classes else None
    assert said_by(out)["images"].shape == (16, *spec.shape)
    images = [Run.open(folder).generative().sample(spec.shape, cond, seeds=[1, 2]) for folder in (run, out)]
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)


def test_a_damaged_export_is_named(tmp_path, capfd):
    out = export(run_of(tmp_path, base=OWN), "safetensors")
    (out / "model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors is damaged" in refusal(capfd, diffusion, "sample", f"run={out}", "device=cpu")


@pytest.mark.parametrize(
    ("words", "spec"),
    [([], CLASSES), (["parameterization=v", "scheduler=cosine"], DataSpec(shape=(1, 4, 6, 5), classes=None))],
    ids=["classes", "3-D"],
)
@torch.no_grad()
def test_onnx_gives_the_same_images(words, spec, tmp_path):
    """The denoiser at any noise level and batch size; and a trajectory by schedule.json alone."""
    onnxruntime = pytest.importorskip("onnxruntime")
    run = run_of(tmp_path, *words, spec=spec, base=OWN)
    out, denoiser = export(run, "onnx"), denoiser_of(run)
    session = onnxruntime.InferenceSession(out / "denoiser.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 3):
        x, t = noise(n, spec.shape), torch.linspace(0.2, 0.9, n, dtype=torch.float64)
        feed = {"x_t": x, "alpha": denoiser.scheduler.alpha(t), "sigma": denoiser.scheduler.sigma(t)}
        cond = {"label": torch.arange(n), "drop": torch.arange(n) == 1} if spec.classes else {}
        (found,) = session.run(["x0"], {name: value.numpy() for name, value in (feed | cond).items()})
        torch.testing.assert_close(torch.from_numpy(found), denoiser(x, t, cond), rtol=1e-5, atol=1e-5)

    schedule = json.loads((out / "schedule.json").read_text())
    levels = {name: np.array(schedule[name]) for name in ("alpha", "sigma")}
    start = np.float32(levels["sigma"][0]) * noise(2, spec.shape).numpy()
    x, told = start, {"label": np.array([2, 0]), "drop": np.zeros(2, bool)} if spec.classes else {}
    for (a, b), (s, r) in zip(pairwise(levels["alpha"]), pairwise(levels["sigma"]), strict=True):
        (mean,) = session.run(["x0"], {"x_t": x, "alpha": np.full(2, a), "sigma": np.full(2, s), **told})
        x = np.float32(r / s) * x + np.float32(b - a * r / s) * mean
    cond = {name: torch.from_numpy(value) for name, value in told.items()}
    ours = ddim(denoiser, torch.from_numpy(start), torch.tensor(schedule["t"], dtype=torch.float64), cond)
    torch.testing.assert_close(torch.from_numpy(x), ours, rtol=1e-5, atol=1e-5)
    assert said_by(out)["x"].shape == (16, *spec.shape)


def card_of(run: Path, *words: str) -> str:
    return (export(run, "safetensors", *words) / "README.md").read_text()


def test_the_card_says_what_is_known_and_names_no_place(tmp_path):
    run = run_of(tmp_path, spec=CLASSES, base=OWN)
    text = card_of(run)
    front = OmegaConf.create(text.split("---")[1])
    assert front.license == "unknown: fill in" and front.library_name == "med-diffusion" and "diffusion" in front.tags
    for wanted in (
        "0123456789abcdef",
        "3 channels",
        "3 (a, b, c)",
        "EMA, decay",
        "3 steps in 0:01:01",
        "Not measured.",
    ):
        assert wanted in text
    for name in ("README.md", "config.yaml"):
        assert str(tmp_path) not in (run / "export" / "safetensors" / name).read_text(), name
    assert "secret" not in text


def test_the_card_holds_figures_with_intervals_and_the_audit(tmp_path):
    run = run_of(tmp_path, base=OWN)
    figure = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 40}
    for task, found in {
        "evaluate": {"n": 40, "metrics": {"kid": {"test": figure | {"floor": None}}}},
        "audit": {"n": 40, "copies": figure, "max_copies": 0.9, "verdict": "pass"},
    }.items():
        (run / task).mkdir()
        receipt = {"extractor": {"name": "domain"}, "generated": {"weights": "another", "step": 2}}
        (run / task / "metrics.json").write_text(json.dumps(found | {"receipt": receipt}))
    text = card_of(run, "license=mit")
    assert 'license: "mit"' in text and "0.500 (0.250 to 0.750)" in text
    assert "50.0% (25.0% to 75.0%) are flagged" in text and "so the audit passes" in text
    assert text.count("of other weights than this folder: those of step 2.") == 2


def test_paths_lose_all_but_their_name(tmp_path):
    (tmp_path / "data.npz").touch()
    config = OmegaConf.create(
        {
            "a": str(tmp_path / "data.npz"),
            "b": ["/somewhere/else/", "~/mine/x", "C:\\data\\y.npz", "plain", "google/ddpm-cifar10-32", "tests/apps"],
            "c": {"d": 3, "e": None, "_target_": "diffusion.models.Diffusion"},
        }
    )
    assert without_places(config) == {
        "a": "data.npz",
        "b": ["else", "x", "y.npz", "plain", "google/ddpm-cifar10-32", "apps"],
        "c": {"d": 3, "e": None, "_target_": "diffusion.models.Diffusion"},
    }
