"""Run directories: where a run lives, what is in it, and the model that it holds.

RUNS_DIR/EXPERIMENT/RUN_ID/ holds config.yaml (the resolved config, with a section `data` that says what the data
are), checkpoints/, metrics.csv, samples/, figures/ and train.log. Whoever needs a run is given the object.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.averages import exponent
from diffusion.callbacks.budget import Budget
from diffusion.callbacks.checkpoints import EXPORTED, LAST, PREVIOUS, facts_of, is_whole, load_weights, read_checkpoint
from diffusion.callbacks.post_hoc_ema import reconstructed
from diffusion.codecs import Codec
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.guidance import NetworkClassifier
from diffusion.models import PARTS, Autoencoder, Classifier, Model, Weights, factory

log = logging.getLogger(__name__)

MAY_DIFFER = (
    "run_id",
    "runs_dir",
    "resume",
    "checkpoint",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.accumulate_grad_batches",
    "logger",
    "accelerator",
    "dataset.root",
    "dataset.path",
    "dataset.workers",
    "dataset.memory",
    "dataset.cache",
    "dataset.cache_size",
    "callbacks.post_hoc_ema.snapshots",
    "data.spec",  # the data's fingerprint says more
    "codec.run",
    "codec.path",
    "guidance.classifier.run",
    "network.checkpointing",  # less memory for more time, and the same numbers
    "network.pretrained",
    "network.base",
    "finetune.from",
    "model.teacher",
    "wandb_id",
    "processes",
)

BEFORE = {"network.patch": 1}
"""What older runs, whose config.yaml lacks a key, were made with."""


class Run:
    """A run directory. `Run.open` reads one; training makes one."""

    def __init__(self, directory: Path, config: DictConfig, checkpoint: str | None = None, ema: float | None = None):
        self.directory, self.config, self.checkpoint, self.ema = directory, config, checkpoint, ema

    @classmethod
    def open(
        cls, directory: str | Path, key: str = "run", checkpoint: str | None = None, ema: float | None = None
    ) -> Run:
        """The run, with the weights of one of its checkpoints: last, best, ...; by default of the newest whole one.

        ema: the relative length of their average, from 0.01 to 0.25; by default the exponential average of training.
        Raises UserError if the directory is not a run's, its config cannot be read, there is no such checkpoint, or the
        length is out of range.
        """
        if ema is not None:
            exponent(ema)
        directory = Path(directory)
        path = directory / "config.yaml"
        if not path.is_file():
            what = "is not a run directory: it has no config.yaml" if directory.exists() else "does not exist"
            raise UserError(
                f"{key}={directory} {what}; give the folder that train.py printed, RUNS_DIR/EXPERIMENT/RUN_ID"
            )
        try:
            config = OmegaConf.load(path)
            DataSpec(**config.data.spec)
        except Exception as error:
            raise UserError(f"{path} cannot be read as a run's config: {str(error).splitlines()[0]}") from error
        run = cls(directory, config, checkpoint, ema)
        if checkpoint is not None and not (run.checkpoints / f"{checkpoint}.ckpt").is_file():
            there = sorted(path.stem for path in run.checkpoints.glob("*.ckpt"))
            raise UserError(f"checkpoint={checkpoint}: {run.checkpoints} holds {', '.join(there) or 'none yet'}")
        return run

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def processes(self) -> int:
        """How many processes the run began with."""
        return self.config.get("processes") or 1

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

    def load_checkpoint(self) -> dict[str, Any]:
        """The content of the checkpoint, by default the newest whole one. Raises UserError if there is none.

        It is shared by all who ask, and not to be changed.
        """
        path = self._chosen_checkpoint()
        if path is None and (self.directory / EXPORTED).is_file():
            return load_weights(self.directory / EXPORTED)
        if path is None:
            raise UserError(f"run {self.directory} has no checkpoint yet: train it first")
        return read_checkpoint(path)

    def _chosen_checkpoint(self) -> Path | None:
        if self.checkpoint is None:
            return self.newest_checkpoint()
        path = self.checkpoints / f"{self.checkpoint}.ckpt"
        if not is_whole(path):
            raise UserError(f"{path} is damaged: choose another checkpoint=, or leave it out")
        return path

    def weights(self, length: float | None = None, at: float = 1.0) -> dict[str, Tensor]:
        """The averaged weights, by name, and the buffers beside them.

        length: of the average, by default `ema`, and where that is None the exponential average of training; at: the
        share of the checkpoint's steps after which a `length` is wanted. Raises UserError where they cannot be had.
        """
        content, length = self.load_checkpoint(), self.ema if length is None else length
        if length is None:
            return dict(content["ema"])
        return content["ema"] | reconstructed(content, self.checkpoints / "ema", length, at)

    @property
    def average(self) -> float | dict[str, float]:
        """Which average of the weights it is, as receipts have it: the decay in training, or a length chosen later."""
        return self.config.callbacks.ema.decay if self.ema is None else {"length": self.ema}

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the averaged weights: two checkpoints that sample alike have the same."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights().items()):
            digest.update(name.encode())
            digest.update(value.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def position(self, path: Path | None = None, budget: Budget | None = None) -> int:
        """The optimizer steps of a checkpoint, by default the newest whole one; `budget` learns what was used of it."""
        path = path or self._chosen_checkpoint()
        content = facts_of(path) if path else self.load_checkpoint()
        if budget is not None:
            budget.load_state_dict(content["callbacks"]["Budget"])
        return content["global_step"]

    @cached_property
    def model(self) -> Model:
        """What kind of model the run is, with its config."""
        return build_model(self.config)

    def under(self, choices: DictConfig) -> Run:
        """The same run, with the groups that `choices` holds (sampler, guidance, codec, dataset, ...) for its own."""
        groups = {name: choices[name] for name in choices if name in self.config and name in PARTS | {"dataset"}}
        return Run(self.directory, OmegaConf.create({**self.config, **groups}), self.checkpoint, self.ema)

    def check(self) -> None:
        """Raises UserError where the run makes no images, or lacks a checkpoint, the average asked for, or a guide."""
        self.model.classes(self.spec)
        if self.config.get("control"):
            raise UserError(
                f"{self.directory} makes images for a control, which only `sample` gives it: draw them, then use "
                "samples=FILE.npz where a task takes it"
            )
        if lacking := self.model.lacks(self.spec):
            raise UserError(lacking)
        self.position()
        if self.ema is not None:
            self.weights()

    def generative(self, device: torch.device | str = "cpu") -> GenerativeModel:
        """The run's model with its averaged weights, ready to sample. Raises UserError if it makes no images."""
        generative = self.model.generative(self.spec, self.weights)
        generative.denoiser.to(device)
        generative.codec.to(device)
        return generative

    def codec(self) -> Codec:
        """The codec that the run has learnt, or in whose latents it lives, with averaged weights.

        Raises UserError if the run is in pixel space. Of an autoencoder that is still learning, a warning.
        """
        return self.model.trained_codec(self.spec, self.load_checkpoint)

    def warn_if_unfinished(self) -> None:
        """A warning that names the step, if the run has not reached its limits."""
        budget = Budget.of(self.config.trainer)
        step = self.position(budget=budget)
        if not budget.reached(step):
            log.warning(
                "run %s is not finished: its weights of step %d are used as they are. If it is trained on, what is "
                "built on them can no longer be used: copy it first",
                self.directory,
                step,
            )


def autoencoder_codec(run: str | None) -> Codec:
    """codec=autoencoder: the autoencoder of a run, frozen, with its averaged weights.

    Raises UserError if there is no such run, it is not an autoencoder's, or has no checkpoint; warns if it is
    unfinished.
    """
    if run is None:
        raise UserError("codec=autoencoder needs codec.run=RUN_DIR, the run of an autoencoder")
    found = Run.open(run, key="codec.run")
    if not isinstance(found.model, Autoencoder):
        raise UserError(f"codec.run={run} is not the run of an autoencoder, but of {found.config.experiment}")
    found.warn_if_unfinished()
    return found.codec()


def noisy_classifier(
    model: Model, spec: DataSpec, weights: Weights | None = None, run: str | None = None
) -> NetworkClassifier:
    """guidance=classifier: the classifier of a run, frozen, with its averaged weights; `weights` go unused.

    It may have been trained under another scheduler: see `NoisyClassifier`. Raises UserError if there is no such run,
    it is not a classifier's, of other images or classes, or has no checkpoint, and where the model lives in latents,
    which a classifier cannot read; warns if it is unfinished, or learnt from other data.
    """
    key = "guidance.classifier.run"
    if run is None:
        raise UserError(
            f"guidance=classifier needs {key}=RUN_DIR, the run of a classifier: train one with model=noisy_classifier"
        )
    if model.config.data.codec_fingerprint is not None:
        raise UserError("guidance=classifier reads pixels, and this run lives in latents: use guidance=classifier_free")
    found = Run.open(run, key=key)
    if not isinstance(found.model, Classifier):
        raise UserError(f"{key}={run} is not the run of a classifier, but of {found.config.experiment}")
    kinds = [(each.shape, each.classes, each.multi_label) for each in (found.spec, spec)]
    if kinds[0] != kinds[1]:
        said = [f"images of shape {shape} and {classes or 'no'} classes" for shape, classes, _ in kinds]
        several = " (several of them at once in one of the two)" if said[0] == said[1] else ""
        raise UserError(f"{key}={run} reads {said[0]}, but this run is of {said[1]}{several}")
    if found.config.data.fingerprint != model.config.data.fingerprint:
        log.warning("the classifier %s learnt from other data than this run: its classes may mean something else", run)
    found.warn_if_unfinished()
    return found.model.trained_classifier(found.spec, found.weights())


def build_model(config: DictConfig) -> Model:
    """The kind of model that a config names, given the whole config."""
    return factory(config.model)(config=config)


def datamodule_of(config: DictConfig) -> pl.LightningDataModule:
    """The data that a config names, downloaded where they must be. DataError if that cannot be done."""
    datamodule = instantiate(config.dataset, seed=config.seed, batch_size=config.batch_size, _convert_="all")
    datamodule.prepare_data()
    return datamodule


def data_section(spec: DataSpec, std: float, fingerprint: str) -> dict[str, Any]:
    """What config.yaml keeps of the data, so that a run can be used where the data are not."""
    values = asdict(spec)
    values["shape"] = list(values["shape"])
    values["class_names"] = list(values["class_names"]) if values["class_names"] else None
    # Rounded, because the last bits of a sum differ from machine to machine, and a run may move.
    facts = {"spec": values, "std": float(f"{std:.10g}"), "fingerprint": fingerprint}
    return facts | {"codec_fingerprint": None}  # of pixel space; a latent model knows better


def differences(old: DictConfig, new: DictConfig) -> list[str]:
    """What keeps a run from going on under another config: "key: old -> new" for each key that must not differ."""
    olds, news = (flat(OmegaConf.to_container(config, resolve=True)) for config in (old, new))
    missing = object()
    lines = []
    for key in sorted(olds.keys() | news.keys()):
        if any(key == free or key.startswith(free + ".") for free in MAY_DIFFER):
            continue
        before, after = olds.get(key, BEFORE.get(key, missing)), news.get(key, missing)
        if before != after:
            before, after = ("(absent)" if value is missing else value for value in (before, after))
            lines.append(f"{key}: {before} -> {after}")
    return lines


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
