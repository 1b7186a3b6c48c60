"""Every yaml under conf/: its target is there, its keys fit, and it composes with the others."""

import inspect
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from datamodules.batch import DataSpec
from diffusion.apps.cli import keys_of
from diffusion.apps.config import CONF, choice_of
from diffusion.errors import UserError
from diffusion.models import factory
from tests.training import built, composed

CONTRACT = """experiment model network scheduler parameterization objective sampler grid guidance codec dataset
accelerator optimizer logger callbacks"""
GROUPS = {*CONTRACT.split(), "augmentation", "control", "perceptual", "discriminator", "extractor", "operator", "space"}
OF_TASKS = {"operator", "space"}
"""Groups that a task has, and training has not."""
OF_PAGES = {"publish", "dashboard"}
"""Tasks that show what is there, and compute nothing."""
CHOICES = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in CONF.iterdir()}

# What the apps give to the target at a key path, or to a target by its name, beside the keys of the yaml.
SAMPLER = {"denoiser", "x", "grid", "cond", "rng", "on_step"}
GIVEN = {
    "model": {"config"},
    "model.network": {"in_channels", "size"},
    "diffusion.networks.NoisyClassifier": {"in_channels", "size", "classes"},
    "model.network.bottleneck": {"channels"},
    "perceptual": {"datamodule", "cache", "device"},
    "discriminator": {"in_channels", "size"},
    "extractor": {"datamodule", "cache", "device"},
    "network": {"in_channels", "out_channels", "size", "classes", "augmentation"},
    "parameterization": {"sd"},
    "sampler": SAMPLER,
    "guidance": {"denoiser"},
    "guidance.classifier": {"model", "spec", "weights"},
    "guidance.weak": {"model", "spec", "weights"},
    "dataset": {"seed", "batch_size"},
    "optimizer": {"params"},
    "callbacks.learning_rate": {"budget"},
    "callbacks.reconstructions": {"folder"},
    "control": {"spec"},
    "callbacks.segmentations": {"folder"},
    "callbacks.post_hoc_ema": {"folder"},
    "callbacks.evaluation": {"generative", "datamodule", "extractor", "classes", "folder", "ema", "budget"},
    "callbacks.previews": {"generative", "shape", "classes", "folder", "ema"},
}
QUICK = ("digits_latent",)
"""Recipes that the quick tests combine with every choice."""
KINDS = (
    *QUICK,
    "tissue_pixel",
    "bloodmnist_vae",
    "bloodmnist_vq",
    "adrenal_vae",
    "adrenal_latent",
    "leukemia_pixel",
    "digits_pixel",
)
"""Those that all tests do: one of each kind, by the groups that it chooses."""
RGB = DataSpec(shape=(3, 28, 28), classes=4)


def targets(node: DictConfig, key: str) -> Iterator[tuple[str, DictConfig]]:
    """Every node with a `_target_`, by its key path; one that refers to another is not a node of its own."""
    if "_target_" in node:
        yield key, node
    for name in node:
        if isinstance(node._get_node(name), DictConfig):
            yield from targets(node[name], f"{key}.{name}")


def nodes() -> list:
    found = []
    for group in GROUPS - {"experiment"}:
        for choice in CHOICES[group]:
            config = choice_of(group, choice)
            found += [pytest.param(key, node, id=f"{group}/{choice}:{key}") for key, node in targets(config, group)]
    return sorted(found, key=lambda param: param.id)


def parameters(target: type) -> tuple[set[str], set[str], bool]:
    """Names that a call takes by keyword, those among them that it needs, and whether it takes any."""
    kinds = inspect.Parameter
    found = inspect.signature(target).parameters.values()
    named = [p for p in found if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    return (
        {p.name for p in named},
        {p.name for p in named if p.default is kinds.empty},
        any(p.kind is kinds.VAR_KEYWORD for p in found),
    )


def options_of(target: type) -> set[str]:
    """Every keyword that reaches a class, through its bases when it passes **options on."""
    names, _, open_ended = parameters(target)
    return names | (options_of(inspect.getmro(target)[1]) if open_ended else set())


def test_the_groups_are_those_of_the_contract():
    assert set(CHOICES) - {"train.yaml", "task", "sweep", "hydra"} == GROUPS
    assert all(CHOICES[group] for group in GROUPS)


def test_the_contract_names_its_choices():
    wanted = {
        "experiment": """tissue_pixel digits_pixel bloodmnist_pixel breastmnist_pixel bloodmnist_vae bloodmnist_vq
            bloodmnist_latent tissue_vae tissue_latent adrenal_vae adrenal_latent digits_vae digits_latent
            leukemia_pixel leukemia_vae leukemia_latent sprites_pixel mnist_pixel retinamnist_pixel
            pneumoniamnist_pixel pathmnist_pixel adrenal_pixel mnist_denoiser wbc_segmenter""",
        "model": """pixel_ddpm latent_ddpm autoencoder_kl autoencoder_vq noisy_classifier segmenter mask_ddpm
            distilled""",
        "network": "tiny small base unet_diffusers controlnet cnn",
        "scheduler": "linear scaled_linear cosine sigmoid edm flow",
        "parameterization": "eps x0 v flow edm",
        "sampler": "ddpm ddim euler heun midpoint dpmpp_2m dpmpp_3m dpmpp_2m_sde unipc",
        "grid": "uniform quadratic karras log_snr optimised angle",
        "dataset": """tissue lesions digits bloodmnist breastmnist npz folder csv masks dicom nifti shards sprites
            mnist""",
        "accelerator": "auto cpu cpu_ddp gpu gpu_ddp gpu_fsdp mps slurm",
        "sweep": "parts size guidance",
        "logger": "csv wandb wandb_offline wandb_disabled",
        "guidance": "none classifier_free classifier",
        "codec": "identity autoencoder diffusers one_hot analog_bits",
        "task": """sample reconstruct denoise evaluate audit utility report doctor shard export tune tune_grid
            inpaint translate restore segment anomaly augment publish dashboard""",
    }
    missing = {g: set(names.split()) - set(CHOICES[g]) for g, names in wanted.items()}
    assert not any(missing.values()), missing


def test_every_medmnist_set_has_a_choice_of_its_own():
    from datamodules.medmnist import catalogue

    volumes = {name for name in catalogue() if name.endswith("3d")}
    assert len(volumes) == 6 and len(catalogue()) == 18
    for name in catalogue():
        assert choice_of("dataset", name).name == name


@pytest.mark.parametrize(("key", "node"), nodes())
def test_a_target_takes_its_keys_and_lacks_what_the_apps_give(key, node):
    target = get_object(node._target_)
    takes, needs, open_ended = parameters(target)
    keys, given = {name for name in node if not name.startswith("_")}, GIVEN.get(node._target_, GIVEN.get(key, set()))
    reached = options_of(target) if inspect.isclass(target) and target.__module__.startswith("datamodules") else takes
    anything = open_ended and reached is takes
    assert keys <= reached or anything, f"no such parameters: {keys - reached}"
    assert given <= reached or anything, f"the app gives what is not taken: {given - reached}"
    assert not keys & given, "the app gives these itself"
    assert needs <= keys | given, f"nobody gives {needs - keys - given}"


def test_a_misspelt_key_would_be_found():
    takes, needs, open_ended = parameters(get_object("diffusion.networks.UNet"))
    assert "chanels" not in takes and needs == {"in_channels", "out_channels", "size"} and not open_ended


@pytest.mark.parametrize("experiment", CHOICES["experiment"])
def test_an_experiment_has_a_limit(experiment):
    recipe = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    assert "trainer.max_time" in _leaves(recipe) or "trainer.max_steps" in _leaves(recipe)


def _leaves(config: DictConfig) -> set[str]:
    return {f"{a}.{b}" for a in config if isinstance(config[a], DictConfig) for b in config[a]}


@cache
def recipe_of(experiment: str) -> DictConfig:
    return composed([f"experiment={experiment}"])


def test_a_dataset_and_an_experiment_set_nothing_of_each_other():
    """By the rules of Hydra: so the pairs that the next test composes speak for all others."""
    for name in CHOICES["dataset"]:
        path = CONF / "dataset" / f"{name}.yaml"
        assert "@package" not in path.read_text()
        assert set(OmegaConf.load(path).get("defaults", [])) <= {*CHOICES["dataset"], "_self_"}
    for name in CHOICES["experiment"]:
        recipe = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
        assert "dataset" not in recipe
        # What it builds on are other experiments, of which the same is true.
        assert {base for base in recipe.defaults if isinstance(base, str)} <= {*CHOICES["experiment"], "_self_"}


@pytest.mark.slow
@pytest.mark.parametrize("place", range(max(len(CHOICES["dataset"]), len(CHOICES["experiment"]))))
def test_a_dataset_composes_with_an_experiment(place):
    experiment, dataset = (CHOICES[group][place % len(CHOICES[group])] for group in ("experiment", "dataset"))
    recipe, chosen = recipe_of(experiment), choice_of("dataset", dataset)
    path = ["dataset.path=some/file.npz"] if "path" in chosen else []
    cfg = composed([f"experiment={experiment}", f"dataset={dataset}", *path])
    if path:
        chosen.path = "some/file.npz"
    assert cfg.dataset == chosen and recipe.experiment == experiment
    # Nothing else of the recipe depends on the data set.
    assert {k: v for k, v in cfg.items() if k != "dataset"} == {k: v for k, v in recipe.items() if k != "dataset"}


@pytest.mark.parametrize(
    "experiment",
    [e if e in QUICK else pytest.param(e, marks=pytest.mark.slow) for e in CHOICES["experiment"] if e in KINDS],
)
def test_every_choice_composes_with_every_recipe(experiment):
    groups = GROUPS - OF_TASKS - {"experiment", "dataset"}
    for row in range(max(len(CHOICES[group]) for group in groups)):
        chosen = {group: CHOICES[group][row % len(CHOICES[group])] for group in groups}
        cfg = composed([f"experiment={experiment}", *(f"{group}={choice}" for group, choice in chosen.items())])
        for group, choice in chosen.items():
            alone = choice_of(group, choice)
            # A recipe may change values of its own choices, but must not add keys to another one.
            assert set(keys_of(cfg[group])) == set(keys_of(alone)), f"{group}={choice}"
            assert [n._target_ for _, n in targets(cfg[group] or {}, "")] == [n._target_ for _, n in targets(alone, "")]


def test_the_root_keys_and_their_defaults():
    cfg = composed([])
    assert {key: cfg[key] for key in ("seed", "runs_dir", "run_id", "resume", "experiment")} == {
        "seed": 0,
        "runs_dir": "runs",
        "run_id": None,
        "resume": "auto",
        "experiment": "tissue_pixel",
    }
    assert cfg.checkpoint.every_n_steps > 0 and cfg.batch_size > 0
    assert {"max_steps", "max_time"} <= set(cfg.trainer)
    assert not cfg.logger and cfg.accelerator.accelerator == "auto"
    assert "root" in composed(["dataset=bloodmnist"]).dataset and "path" in composed(["dataset=npz"]).dataset


def test_tasks_have_the_keys_of_the_contract():
    for task in sorted({*CHOICES["task"]} - OF_PAGES):
        config = OmegaConf.load(CONF / "task" / f"{task}.yaml")
        keys = {"run", "out", "overwrite", "n", "seed"}
        if task == "tune":
            assert {"train", "space", "study"} <= set(config)  # its folder is the study's, and is gone on with
            continue
        if OmegaConf.is_missing(config, "train"):
            keys = {"train", "out", "overwrite", "n"}  # the seed is among the words of train.py
        assert keys <= set(config)
        assert config.out is None and config.overwrite is False


@pytest.fixture(scope="module")
def small() -> DictConfig:
    return composed(["experiment=tissue_pixel", "network=tiny", "network.channels=8"])


def choose(config: DictConfig, **choices: str) -> DictConfig:
    """A copy with other choices; much faster than to compose it anew, which the tests above do."""
    found = {group: choice_of(group, choice) for group, choice in choices.items()}
    return OmegaConf.create({**config, **found})


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", CHOICES["scheduler"])
@pytest.mark.parametrize("parameterization", CHOICES["parameterization"])
def test_a_scheduler_and_a_parameterization_fit_every_objective_or_are_refused(small, scheduler, parameterization):
    configs = {
        objective: choose(small, scheduler=scheduler, parameterization=parameterization, objective=objective)
        for objective in CHOICES["objective"]
    }
    for objective in ("one_level", "cross_entropy"):
        configs[objective].objective.times.level = 0.2  # which the table below reaches
    if scheduler == "table":
        for cfg in configs.values():
            with pytest.raises(UserError, match=r"scheduler\.betas"):
                built(cfg, RGB, std=0.5)
            cfg.scheduler.betas = [0.001, 0.01, 0.1]
    if parameterization == "eps" and scheduler in ("flow", "zero_terminal"):
        for cfg in configs.values():
            with pytest.raises(UserError, match="zero terminal SNR"):
                built(cfg, RGB, std=0.5)
        return
    if scheduler == "learned":
        for cfg in (cfg for objective, cfg in configs.items() if objective != "elbo"):
            with pytest.raises(UserError, match="objective=elbo"):
                built(cfg, RGB, std=0.5)
        configs = {"elbo": configs["elbo"]}
    if "cross_entropy" in configs:  # it wants pixels between black and white
        with pytest.raises(UserError, match=r"network\.bounded=true"):
            built(configs["cross_entropy"], RGB, std=0.5)
        bounded = choose(configs.pop("cross_entropy"), network="cnn")
        bounded.network.bounded = True
        configs |= {"cross_entropy": bounded} if parameterization == "x0" else {}
    x0, noise = torch.rand(2, 3, 28, 28) * 2 - 1, torch.randn(2, 3, 28, 28)
    for cfg in configs.values():
        _, module = built(cfg, RGB, std=0.5)
        t = module.objective.time(torch.tensor([0.0, 0.9], dtype=torch.float64), module.denoiser.scheduler)
        with torch.no_grad():
            loss = module.objective.loss(module.denoiser, x0, noise, t, {"label": torch.tensor([0, 3])})
        assert loss.shape == (2,) and torch.isfinite(loss).all() and (loss > 0).all()


@pytest.mark.parametrize("network", CHOICES["network"])
def test_a_network_is_built_for_the_data(network):
    node, control, given = choice_of("network", network), {}, {}
    if "trunk" in node:
        node.trunk = {**choice_of("network", "small"), "_partial_": True}
        control, given = {"control": torch.empty(2, 1, 28, 28, device="meta")}, {"control": (1, 28, 28)}
    with torch.device("meta"):  # shapes without numbers: the base network would take seconds
        unet = factory(node)(in_channels=3, out_channels=3, size=[28, 28], classes=4, **given)
        x = torch.empty(2, 3, 28, 28)
        answer = unet(x, torch.empty(2), {"label": torch.empty(2, dtype=torch.long)} | control)
    assert answer.shape == x.shape and answer.is_meta


@pytest.mark.slow
@pytest.mark.parametrize("sampler", CHOICES["sampler"])
@pytest.mark.parametrize("grid", CHOICES["grid"])
def test_a_sampler_and_a_grid_draw_images(small, sampler, grid):
    cfg = choose(small, sampler=sampler, grid=grid, guidance="classifier_free")
    cfg.grid.steps = 2
    model, module = built(cfg, RGB, std=0.5)
    if grid == "optimised":  # of a trained run: tests/apps/test_tune_grid.py
        with pytest.raises(UserError, match="tune_grid"):
            model.sampled(module.denoiser, RGB)
        return
    images = model.sampled(module.denoiser.eval(), RGB).sample((3, 8, 8), {"label": torch.tensor([0, 3])}, seeds=[0, 1])
    assert images.shape == (2, 3, 8, 8) and torch.isfinite(images).all()
