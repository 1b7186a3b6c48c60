"""Run directories: where a run lives, what is in it, and the model that it holds.

RUNS_DIR/EXPERIMENT/RUN_ID/ holds config.yaml (the resolved config, with a section `data` that says what the data
are), checkpoints/, metrics.csv, samples/, figures/ and train.log. Whoever needs a run is given the object.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from datamodules.batch import DataSpec
from diffusion.callbacks.checkpoints import LAST, PREVIOUS, is_whole
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.modules import DiffusionModule

log = logging.getLogger(__name__)

MAY_DIFFER = (
    "run_id",
    "runs_dir",
    "resume",
    "checkpoint",
    "trainer.max_steps",
    "trainer.max_time",
    "logger",
    "accelerator",
    "dataset.root",
    "dataset.path",
    "wandb_id",
)


class Run:
    """A run directory. `Run.open` reads one; training makes one."""

    def __init__(self, directory: Path, config: DictConfig):
        self.directory, self.config = directory, config

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """Raises UserError if the directory is not a run's, or its config cannot be read."""
        directory = Path(directory)
        path = directory / "config.yaml"
        if not path.is_file():
            what = "is not a run directory: it has no config.yaml" if directory.exists() else "does not exist"
            raise UserError(
                f"run={directory} {what}; give the folder that train.py printed, RUNS_DIR/EXPERIMENT/RUN_ID"
            )
        try:
            config = OmegaConf.load(path)
            DataSpec(**config.data.spec)
        except Exception as error:
            raise UserError(f"{path} cannot be read as a run's config: {str(error).splitlines()[0]}") from error
        return cls(directory, config)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @cached_property
    def spec(self) -> DataSpec:
        """The data's shape and classes, as they were when the run began."""
        values = OmegaConf.to_container(self.config.data.spec)
        values["shape"] = tuple(values["shape"])
        values["class_names"] = tuple(values["class_names"]) if values["class_names"] else None
        return DataSpec(**values)

    def newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; a damaged one is named in a warning, and the one before it is taken.

        None when there is none yet. Raises UserError when there are some and all are damaged.
        """
        candidates = [self.checkpoints / name for name in (LAST, PREVIOUS) if (self.checkpoints / name).exists()]
        for path in candidates:
            if is_whole(path):
                for damaged in candidates[: candidates.index(path)]:
                    log.warning("checkpoint %s is damaged; the one before it is used, %s", damaged, path.name)
                return path
        if candidates:
            raise UserError(
                f"all checkpoints of {self.directory} are damaged ({', '.join(p.name for p in candidates)}): "
                "restore one, or begin anew under another run_id"
            )
        return None

    def set_damaged_aside(self) -> None:
        """Rename a damaged last.ckpt, so that it never takes the place of the whole one before it."""
        last = self.checkpoints / LAST
        if last.exists() and not is_whole(last):
            last.rename(last.with_suffix(".damaged"))

    def load_checkpoint(self, path: Path | None = None) -> dict[str, Any]:
        """The content of a checkpoint, by default the newest whole one. Raises UserError if there is none."""
        path = path or self.newest_checkpoint()
        if path is None:
            raise UserError(f"run {self.directory} has no checkpoint yet: train it first")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def generative(self, config: DictConfig | None = None, device: torch.device | str = "cpu") -> GenerativeModel:
        """The run's model with its averaged weights, ready to sample.

        `config` gives sampler, grid and guidance in place of the run's own.
        """
        module = build_module(self.config, self.spec, self.config.data.std)
        module.network.load_state_dict(self.load_checkpoint()["ema"])
        return build_generative(config or self.config, module.eval().to(device))


def build_module(config: DictConfig, spec: DataSpec, std: float) -> DiffusionModule:
    """The LightningModule that a config describes, for data of this shape, classes and standard deviation.

    Its initial weights depend on config.seed alone. Raises UserError where the parts do not fit together.
    """
    from diffusion.denoiser import NetworkDenoiser
    from diffusion.random import seed_of

    codec = instantiate(config.codec)
    shape = codec.latent_shape(spec.shape)
    strange = [key for key in config.model.condition if key != "label"]
    if strange:
        raise UserError(f"model.condition={list(config.model.condition)}: the networks can be told label only, or []")
    augmentation = instantiate(config.augmentation) if config.augmentation else None
    torch.manual_seed(seed_of(config.seed, "weights"))
    network = factory(config.network)(
        in_channels=shape[0],
        out_channels=shape[0],
        size=list(shape[1:]),
        classes=classes_told(config, spec),
        augmentation=augmentation.values if augmentation else 0,
    )
    denoiser = NetworkDenoiser(
        scheduler=instantiate(config.scheduler),
        parameterization=factory(config.parameterization)(sd=std),
        network=network,
    )
    return factory(config.model)(
        denoiser=denoiser,
        codec=codec,
        objective=instantiate(config.objective),
        optimizer=factory(config.optimizer),
        augmentation=augmentation,
        seed=config.seed,
    )


def classes_told(config: DictConfig, spec: DataSpec) -> int | None:
    """The classes that the network is told, or None: where the data have none, or model.condition leaves them out."""
    return spec.classes if "label" in config.model.condition else None


def factory(node: DictConfig) -> Callable[..., Any]:
    """The node's target with its keys bound, to be called with objects.

    What the target refuses is the config's mistake, and raised as a UserError.
    Objects never go through `instantiate` itself: it takes a dataclass instance for a config, and rebuilds it.
    """
    bound = instantiate(node, _partial_=True, _convert_="all")

    def make(*objects: Any, **named: Any) -> Any:
        try:
            return bound(*objects, **named)
        except UserError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{node._target_} refuses its keys: {' '.join(str(error).split())}") from error

    return make


def build_generative(config: DictConfig, module: DiffusionModule) -> GenerativeModel:
    """The module's denoiser, under the guidance that the config asks for, with its sampler and grid."""
    denoiser = module.denoiser
    if config.get("guidance"):
        if module.label_dropout == 0:
            raise UserError("guidance needs model.label_dropout above 0 in training: use guidance=none")
        denoiser = factory(config.guidance)(denoiser)
    return GenerativeModel(denoiser, module.codec, instantiate(config.sampler), instantiate(config.grid))


def data_section(spec: DataSpec, std: float, fingerprint: str) -> dict[str, Any]:
    """What config.yaml keeps of the data, so that a run can be used where the data are not."""
    values = asdict(spec)
    values["shape"] = list(values["shape"])
    values["class_names"] = list(values["class_names"]) if values["class_names"] else None
    # Rounded, because the last bits of a sum differ from machine to machine, and a run may move.
    return {"spec": values, "std": float(f"{std:.10g}"), "fingerprint": fingerprint}


def differences(old: DictConfig, new: DictConfig) -> list[str]:
    """What keeps a run from going on under another config: "key: old -> new" for each key that must not differ."""
    olds, news = (_flat(OmegaConf.to_container(config, resolve=True)) for config in (old, new))
    missing = object()
    lines = []
    for key in sorted(olds.keys() | news.keys()):
        if any(key == free or key.startswith(free + ".") for free in MAY_DIFFER):
            continue
        before, after = olds.get(key, missing), news.get(key, missing)
        if before != after:
            before, after = ("(absent)" if value is missing else value for value in (before, after))
            lines.append(f"{key}: {before} -> {after}")
    return lines


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
