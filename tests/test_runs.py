"""A run directory is opened whole, or refused in one line."""

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from datamodules.batch import DataSpec
from diffusion.callbacks import AtomicCheckpointIO
from diffusion.errors import UserError
from diffusion.runs import Run, data_section, differences
from tests.training import SMALL, built, composed

SPECS = [
    DataSpec((1, 8, 8), 10, tuple("0123456789")),
    DataSpec((3, 9, 12), None),
    DataSpec((2, 6, 8, 10), 3, None, multi_label=True),
]


@pytest.fixture(scope="module")
def config():
    return OmegaConf.to_container(composed(SMALL), resolve=True)


@pytest.fixture
def run(config, tmp_path):
    values = config | {"data": data_section(SPECS[0], 0.7, "0" * 16)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    return Run.open(tmp_path)


def save(run, name, step, ema=None):
    content = {"global_step": step, "ema": ema or {}}
    AtomicCheckpointIO().save_checkpoint(content, run.checkpoints / name)


@pytest.mark.parametrize("spec", SPECS)
def test_spec_goes_through_the_file(config, tmp_path, spec):
    values = config | {"data": data_section(spec, 0.7, "0" * 16)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert Run.open(str(tmp_path)).spec == spec


def test_not_a_run(tmp_path):
    with pytest.raises(UserError, match=r"it has no config\.yaml"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Run.open(tmp_path / "missing")


@pytest.mark.parametrize("text", ["", "a: [1", "just words", "data: {spec: {colour: 1}}", "data: null"])
def test_config_that_is_no_runs(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="cannot be read as a run's config") as error:
        Run.open(tmp_path)
    assert "\n" not in str(error.value)


def test_newest_checkpoint(run, caplog):
    assert run.newest_checkpoint() is None
    with pytest.raises(UserError, match="no checkpoint yet"):
        run.load_checkpoint()
    for step in (1, 2):
        save(run, "last.ckpt", step)
    assert run.newest_checkpoint().name == "last.ckpt"
    assert run.load_checkpoint()["global_step"] == 2
    assert not caplog.records


def test_a_checkpoint_of_ones_choice(run):
    save(run, "last.ckpt", 9, {"w": torch.ones(2)})
    save(run, "best.ckpt", 4, {"w": torch.zeros(2)})
    best = Run.open(run.directory, checkpoint="best")
    assert (best.position(), run.position()) == (4, 9)
    assert best.under(OmegaConf.create()).position() == 4
    same = Run.open(run.directory, checkpoint="last")
    assert same.fingerprint() == run.fingerprint() != best.fingerprint()
    with pytest.raises(UserError, match=r"checkpoint=first: .* holds best, last"):
        Run.open(run.directory, checkpoint="first")
    path = run.checkpoints / "best.ckpt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        best.position()


def test_damaged_checkpoints(run, caplog):
    for step in (1, 2):
        save(run, "last.ckpt", step)
    last, previous = run.checkpoints / "last.ckpt", run.checkpoints / "previous.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    assert run.load_checkpoint()["global_step"] == 1
    assert str(last) in caplog.text and "damaged" in caplog.text
    previous.write_bytes(b"")
    with pytest.raises(UserError, match="all checkpoints"):
        run.newest_checkpoint()
    last.unlink()
    with pytest.raises(UserError, match="all checkpoints"):
        run.newest_checkpoint()


def test_last_checkpoint_missing(run):
    for step in (1, 2):
        save(run, "last.ckpt", step)
    (run.checkpoints / "last.ckpt").unlink()
    assert run.load_checkpoint()["global_step"] == 1


def test_generative_holds_the_average(run):
    _, module = built(run.config, run.spec, 0.7)
    ema = {name: torch.full_like(p, 0.25) for name, p in module.trained.named_parameters()}
    save(run, "last.ckpt", 1, ema)
    generative = run.generative()
    assert all((p == 0.25).all() for p in generative.denoiser.parameters())


def test_generative_is_without_dropout_before_and_after_a_sample(run):
    _, module = built(run.config, run.spec, 0.7)
    save(run, "last.ckpt", 1, dict(module.trained.named_parameters()))
    generative = run.generative()  # guided, as the recipe says
    assert not any(part.training for part in generative.denoiser.modules() if isinstance(part, torch.nn.Dropout))
    generative.sample(run.spec.shape, {"label": torch.zeros(1, dtype=torch.int64)}, seeds=[0])
    assert not any(part.training for part in generative.denoiser.modules() if isinstance(part, torch.nn.Dropout))


def test_initial_weights_depend_on_the_seed_alone(run):
    weights = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(global_seed)
        config = OmegaConf.merge(run.config, {"seed": seed})
        _, module = built(config, run.spec, 0.7)
        weights.append(torch.cat([p.detach().flatten() for p in module.network.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


BASE = {
    "seed": 0,
    "runs_dir": "a",
    "trainer": {"max_steps": 5, "max_time": None, "log": 1},
    "accelerator": {"devices": 1},
    "logger": None,
    "checkpoint": {"every_n_steps": 1},
    "dataset": {"root": "x", "path": "y", "size": 28},
    "network": {"multipliers": [1, 2]},
    "guidance": None,
    "data": {"fingerprint": "f"},
}


def changed(**values):
    return differences(OmegaConf.create(BASE), OmegaConf.merge(OmegaConf.create(BASE), values))


@pytest.mark.parametrize(
    "values",
    [
        {"runs_dir": "b"},
        {"trainer": {"max_steps": 9, "max_time": "00:00:01:00"}},
        {"accelerator": {"devices": 2, "precision": "bf16-mixed"}},
        {"logger": {"_target_": "x", "project": "p"}},
        {"checkpoint": {"every_n_steps": 7}},
        {"dataset": {"root": "z", "path": "z"}},
        {"network": {"checkpointing": True}},
        {"network": {"patch": 1}},  # what older runs have, whose config.yaml does not say so
    ],
)
def test_what_may_differ(values):
    assert changed(**values) == []


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"seed": 1}, ["seed: 0 -> 1"]),
        ({"trainer": {"log": 2}}, ["trainer.log: 1 -> 2"]),
        ({"dataset": {"size": 64}}, ["dataset.size: 28 -> 64"]),
        ({"network": {"patch": 2}}, ["network.patch: 1 -> 2"]),
        ({"network": {"multipliers": [1, 2, 3]}}, ["network.multipliers: [1, 2] -> [1, 2, 3]"]),
        ({"data": {"fingerprint": "g"}}, ["data.fingerprint: f -> g"]),
        ({"optimizer": {"lr": 1}}, ["optimizer.lr: (absent) -> 1"]),
        ({"seed": 1, "dataset": {"size": 64}}, ["dataset.size: 28 -> 64", "seed: 0 -> 1"]),
        ({"guidance": {"scale": 2}}, ["guidance: None -> (absent)", "guidance.scale: (absent) -> 2"]),
        ({"runs_directory": 1}, ["runs_directory: (absent) -> 1"]),
    ],
)
def test_what_may_not(values, lines):
    assert changed(**values) == lines
