"""Helpers that train small runs, in this process or in one that can be killed."""

import itertools
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from datamodules.batch import DataSpec
from diffusion.apps import cli
from diffusion.apps.config import training_config
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.models import Model
from diffusion.runs import build_model

SHORT = ["accelerator=cpu", "trainer.max_time=null", "batch_size=16"]
SMALL = [
    "experiment=digits_pixel",
    *SHORT,
    "network.channels=8",
    "network.dropout=0.1",
    "callbacks.previews.n=4",
    "grid.steps=2",
]
OFTEN = [
    "trainer.validate_every_n_steps=4",
    "trainer.log_every_n_steps=2",
    "checkpoint.every_n_steps=4",
    "callbacks.previews.every_n_steps=4",
    "callbacks.learning_rate.final=1",
]
"""Small runs show all that they write, at a constant rate."""
CLASSIFIER = ["experiment=digits_classifier", *SHORT, "model.network.channels=8"]
SEGMENTER = ["experiment=wbc_segmenter", "dataset=tissue", *SHORT, "network=tiny", "network.channels=8"]
AUTOENCODER = ["experiment=digits_vae", *SHORT, "model.network.channels=8", "callbacks.reconstructions.n=4"]


def composed(overrides: list[str]) -> DictConfig:
    """The config of `python train.py OVERRIDES`."""
    return training_config(overrides)


def built(config: DictConfig, spec: DataSpec, std: float) -> tuple[Model, pl.LightningModule]:
    """The model that a config describes, and its module, for data of this shape and standard deviation."""
    facts = {"spec": None, "std": std, "fingerprint": "0" * 16, "codec_fingerprint": None}
    model = build_model(OmegaConf.create({**config, "data": facts}))
    return model, model.module(SimpleNamespace(spec=spec))


def run_training(runs_dir: Path, *overrides: str, base: Sequence[str] = SMALL) -> Path:
    """Train in this process; the run directory, whose run_id is `run` unless the overrides say otherwise."""
    from diffusion.apps.train import train

    cfg = composed([*base, f"runs_dir={runs_dir}", "run_id=run", *overrides])
    train(cfg)
    return Path(runs_dir) / cfg.experiment / cfg.run_id


def state(run: Path) -> dict[str, torch.Tensor]:
    """Everything that training has changed, as named tensors."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    tensors = {f"weights.{k}": v for k, v in checkpoint["state_dict"].items()}
    tensors |= {f"ema.{k}": v for k, v in checkpoint["ema"].items()}
    for length, average in checkpoint.get("profiles", {}).items():
        tensors |= {f"profiles.{length}.{k}": v for k, v in average.items()}
    for i, values in checkpoint["optimizer_states"][0]["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in values.items()}
    return tensors | {"step": torch.tensor(checkpoint["global_step"])}


def losses(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the clock."""
    timed = {"elapsed_seconds", "train/images_per_second"}
    return [{k: v for k, v in row.items() if k not in timed} for row in read_rows(run / "metrics.csv")]


def assert_same_run(run: Path, reference: Path) -> None:
    """Weights, average, optimizer state and logged losses are equal to the bit."""
    found, wanted = state(run), state(reference)
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different
    assert losses(run) == losses(reference)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _child(overrides: list[str], kill: str | tuple[int, float] | None, environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    if kill == "checkpoint":
        save = torch.save

        def half(content: object, file: object) -> None:
            save(content, file)
            file.flush()
            file.truncate(file.tell() // 2)
            _kill()

        torch.save = half
    elif kill is not None:
        from diffusion.modules import AutoencoderModule, DiffusionModule

        steps, delay = kill
        taken = itertools.count(1)

        def counting(step: Callable) -> Callable:
            def counted(*arguments: object) -> object:
                if next(taken) == steps:
                    threading.Timer(delay, _kill).start()
                return step(*arguments)

            return counted

        for module in (AutoencoderModule, DiffusionModule):
            module.training_step = counting(module.training_step)

    def body() -> None:
        from diffusion.apps.train import train

        train(composed(overrides))

    cli.run(body)


def start_training(
    runs_dir: Path, *overrides: str, kill: str | tuple[int, float] | None = None, base: Sequence[str] = SMALL
) -> multiprocessing.Process:
    """Train in a process of its own.

    It kills itself (SIGKILL) in the middle of writing a "checkpoint", or at its n-th step and so many seconds on.
    """
    return started(_child, [*base, f"runs_dir={runs_dir}", "run_id=run", *overrides], kill, {})


def start_together(
    runs_dir: Path,
    *overrides: str,
    count: int,
    accelerator: str = "cpu_ddp",
    told: Mapping[str, str] | None = None,
    base: Sequence[str] = SMALL,
) -> list[multiprocessing.Process]:
    """Train one run in so many processes, which are told of each other as torchrun does it.

    told: what else is in their environment
    """
    words = [*base, f"runs_dir={runs_dir}", "run_id=run", f"accelerator={accelerator}", *overrides]
    return [started(_child, words, None, environment | (told or {})) for environment in as_torchrun(count)]


def as_torchrun(count: int) -> list[dict[str, str]]:
    """The environments of so many processes on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}
    each = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(count)]
    return [{name: str(value) for name, value in environment.items()} for environment in each]


def join(processes: Sequence[multiprocessing.Process], timeout: float = 120.0) -> list[int | None]:
    """Their statuses; None of one that has not ended in time, which is killed."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return statuses


def started(body: Callable, *arguments: object) -> multiprocessing.Process:
    """A process at work on this; a fork server has done the imports, so that a start costs a tenth of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training", "diffusion.apps.train", "datamodules.digits", "sklearn.datasets"])
    process = context.Process(target=body, args=arguments)
    process.start()
    return process
