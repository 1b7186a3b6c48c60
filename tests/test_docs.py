"""The documentation: every command runs, every picture and file that it names is there, every choice is listed."""

import argparse
import importlib
import os
import re
import shlex
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from torch._dynamo.backends.debugging import aot_eager
from torch._inductor import compile_fx

from datamodules.digits import Digits
from datamodules.medmnist import catalogue
from diffusion.apps import tasks
from diffusion.apps.config import CONF
from tests.datamodules.pictures import class_folders
from tests.training import AUTOENCODER, CLASSIFIER, SEGMENTER, SMALL, composed, run_training

# What makes a task quick.
QUICK = {
    "reconstruct": ["classifier=false"],
    "evaluate": ["n=20", "extractor=random"],
    "audit": ["n=20", "members=10", "extractor=random"],
    "utility": ["n=20", "steps=2", "seeds=1", "budgets=[2]"],
    "report": ["n=1"],
    "likelihood": ["grid.steps=5", "tolerance=0.1"],
    "denoise": ["n=3", "samples=2", "tuned=2", "grid.steps=6"],
    "tune_grid": ["n=4", "steps=2"],
    "segment": ["samples=2", "shown=2"],
    "anomaly": ["n=40", "draws=1", "extractor=random", "shown=2"],
    "inpaint": ["samples=1", "grid.steps=2"],
    "translate": ["classifier=false", "grid.steps=2"],
    "restore": ["samples=1", "grid.steps=2"],
    "augment": ["n=4", "real=false", "classifier=false", "grid.steps=2"],
    "tune": [*SMALL, "trials=1", "trainer.max_steps=2", "callbacks.evaluation.n=20", "extractor=random"],
    "doctor": ["network=tiny", "network.channels=8", "seconds=0.3"],
}

TISSUE = ["experiment=tissue_pixel", "dataset.stride=8"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(start: str) -> list[str]:
    """All commands on all pages that begin with `start`, from fenced blocks and from code in tables."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`((?:python|make) [^`]+)`", text)
        found += [
            line.removeprefix(".venv/bin/") for line in lines if line.removeprefix(".venv/bin/").startswith(start)
        ]
    return sorted(set(found))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of each kind: in pixels, an autoencoder, one in its latents, and one that diffusers has a pipeline for."""
    folder, steps = tmp_path_factory.mktemp("runs"), ["trainer.max_steps=2", "trainer.log_every_n_steps=1"]
    autoencoder = run_training(folder, *steps, base=AUTOENCODER)
    latent = run_training(folder, *steps, "experiment=digits_latent", f"codec.run={autoencoder}")
    classifier = run_training(folder, *steps, base=CLASSIFIER)
    theirs = run_training(folder, *steps, "experiment=digits_diffusers", "network.head_channels=8")
    return {
        "pixel": run_training(folder, *steps, "trainer.max_steps=60"),  # so that it has snapshots of its past
        "vae": autoencoder,
        "latent": latent,
        "classifier": classifier,
        "segmenter": run_training(folder, *steps, base=SEGMENTER),
        "diffusers": theirs,
        "tissue": run_training(folder, *steps, *TISSUE, base=SMALL),
    }


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    """Digits, in the layout that `sample` writes."""
    test = Digits().split("test")
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, images=test.images[:40].movedim(1, -1).numpy(), labels=test.labels[:40].numpy())
    return path


@pytest.fixture(scope="module")
def results(samples) -> Path:
    """What evaluate has written."""
    words = [f"samples={samples}", "dataset=digits", f"out={samples.parent / 'out'}", *QUICK["evaluate"]]
    tasks.main(["evaluate", *words])
    return samples.parent / "out"


@pytest.fixture(scope="module")
def variants(runs) -> Path:
    """What augment has written of the pixel run."""
    folder = runs["pixel"] / "variants"
    tasks.main(["augment", f"run={runs['pixel']}", f"out={folder}", *QUICK["augment"], "device=cpu"])
    return folder


@pytest.fixture
def npz(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (12, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(12)[:, None] % 4
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def of_npz(path: Path) -> Path:
    """The test split of such a file, in the layout that `sample` writes."""
    with np.load(path) as arrays:
        np.savez(path.parent / "samples.npz", images=arrays["test_images"], labels=arrays["test_labels"][:, 0])
    return path.parent / "samples.npz"


def test_the_pages_hold_commands_to_test():
    assert len(commands("python train.py")) >= 8
    assert len(commands("python -m diffusion")) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("python train.py"))
def test_training_commands_compose(command, npz):
    words = shlex.split(command.replace("FILE", str(npz)))[2:]
    if "--help" in words:
        return  # tests/apps/test_cli.py runs it
    sweeps = "-m" in words or any(word.startswith("sweep=") for word in words)
    trials = [word.split(",")[0] for word in words if word != "-m"] if sweeps else words
    cfg = composed(trials)
    for word in trials:
        key, value = word.split("=", 1)
        assert key in cfg or "." in key or key == "sweep" or key == "hydra/launcher"
        if (CONF / key).is_dir():
            assert (CONF / key / f"{value}.yaml").is_file()


@pytest.mark.slow
def test_the_command_for_a_file_of_ones_own_trains(npz, tmp_path):
    (command,) = [command for command in commands("python train.py") if "bloodmnist_pixel dataset=npz" in command]
    words = shlex.split(command.replace("FILE", str(npz)))[2:]
    small = ["network=tiny", "network.channels=8", "trainer.max_steps=2", "grid.steps=2", "callbacks.previews.n=4"]
    from diffusion.apps.train import train

    train(composed([*words, *small, f"runs_dir={tmp_path}", "run_id=own", "accelerator=cpu", "batch_size=4"]))
    assert (tmp_path / "bloodmnist_pixel" / "own" / "samples" / "step_0000002.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("python -m diffusion"))
def test_task_commands_run(command, runs, samples, results, variants, npz, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb"))
    task, *words = shlex.split(command)[3:]
    if "--help" in words or "codec=diffusers" in words or "pipeline=SD_DIR" in words:
        return  # tests/apps/test_cli.py, test_latent.py, which makes such an autoencoder, and test_augment.py run these
    kind = "latent" if "latent" in command or "codec.run" in command else "vae" if task == "reconstruct" else "pixel"
    kind = "diffusers" if "to=diffusers" in command else "segmenter" if task == "segment" else kind
    kind = "tissue" if "dataset=lesions" in command else kind
    words = [re.sub(r"^run=.*", f"run={runs[kind]}", word) for word in words]
    words = [re.sub(r"^codec.run=.*", f"codec.run={runs['vae']}", word) for word in words]
    words = [re.sub(r"^(guidance.classifier.run)=.*", rf"\1={runs['classifier']}", word) for word in words]
    words = [re.sub(r"^variants=RUN_DIR.*", f"variants={variants}", word) for word in words]
    words = [re.sub(r"^n=.*", "n=4", word) for word in words if not word.startswith("logger=")]
    words = [re.sub(r"^images=FILE.*", f"images={samples}", word) for word in words]
    elsewhere = of_npz(npz) if "dataset=npz" in words else samples
    words = [re.sub(r"^samples=.*", f"samples={elsewhere}", word) for word in words]
    if "dataset.path=DIR" in words:
        words.append(f"dataset.cache={tmp_path / 'cache'}")
    pictures = class_folders(tmp_path / "pictures", 30)
    words = [re.sub(r"^(dataset.path|images)=DIR", rf"\1={pictures}", word) for word in words]
    words = [re.sub(r"^dataset.path=FILE", f"dataset.path={npz}", word) for word in words]
    words = [re.sub(r"^max_copies=.*", "max_copies=1", word) for word in words]
    words = [word.replace("[A,B]", f"[{results},{results}]") for word in words]
    if task == "publish":
        tasks.main([task, *words, "logger=wandb_offline"])
        assert list(runs[kind].glob("wandb/offline-run-*"))
        return
    if task == "tune":
        tasks.main([task, *words, *QUICK[task], f"runs_dir={tmp_path}"])
        assert [path.name for path in tmp_path.glob("studies/*/study.html")] == ["study.html"]
        return
    if any(word.startswith("compile=") for word in words):  # tests/test_compilation.py has torch write code
        monkeypatch.setattr(compile_fx, "compile_fx", aot_eager)
    device = {"doctor": ["accelerator=cpu"], "shard": [], "export": [], "dashboard": []}.get(task, ["device=cpu"])
    tasks.main([task, *words, *QUICK.get(task, []), f"out={tmp_path / 'out'}", *device])
    if task == "report":
        assert (tmp_path / "out" / "report.html").is_file()
    elif task == "dashboard":
        assert (tmp_path / "out" / "dashboard.json").is_file()
    elif "compare" not in command:
        assert list((tmp_path / "out").glob("*.png")) and (tmp_path / "out" / "metrics.json").is_file()


def test_make_targets_and_pip_lines_agree():
    makefile = (ROOT / "Makefile").read_text()
    for command in commands("make "):
        assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)
    assert '-m pip install -e ".[dev]"' in makefile
    project = (ROOT / "pyproject.toml").read_text()
    for command in commands("python -m pip"):
        (extra,) = re.fullmatch(r'python -m pip install -e "\.\[(\w+)\]"', command).groups()
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_pictures_and_pages_are_there():
    for page in PAGES:
        for name in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert name.startswith("http") or (page.parent / name).is_file(), f"{page.name}: {name}"


def test_every_choice_is_listed():
    """docs/parts.md names every group and each of its choices; data sets are named by kind."""
    text = (ROOT / "docs" / "parts.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    for group in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in ("task", "callbacks")):
        choices = {path.stem for path in group.glob("*.yaml")}
        if group.name == "dataset":
            choices -= catalogue().keys()  # they are named by their kind
        missing = [choice for choice in sorted(choices) if f"`{choice}`" not in rows[group.name]]
        assert not missing, group.name


class _Parsed(Exception):
    pass


@pytest.mark.parametrize("command", commands("python benchmarks/"))
def test_options_of_benchmarks_are_known(command, monkeypatch):
    """They take minutes to hours: here they are begun, as far as reading their words."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(parser, *args, **kwargs):
        _, rest = parse(parser, *args, **kwargs)
        assert not [word for word in rest if word.startswith("-")]
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    _, script, *words = shlex.split(command)
    monkeypatch.setattr("sys.argv", [script, *words])
    with pytest.raises(_Parsed), mock.patch.dict(os.environ):
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
