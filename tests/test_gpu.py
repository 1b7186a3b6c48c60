"""The CUDA paths: what they compute, and that the host never waits inside a training step."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from datamodules.batch import DataSpec
from datamodules.digits import Digits
from diffusion.apps import tasks
from diffusion.apps.config import CONF
from diffusion.callbacks import EMA, Budget
from diffusion.codecs import Identity
from diffusion.generative import GenerativeModel
from diffusion.grids import LogSNR
from diffusion.models import factory
from diffusion.modules import DiffusionModule
from diffusion.networks import UNet
from tests.callbacks.test_metrics import train_rows
from tests.training import AUTOENCODER, SMALL, built, composed, losses, run_training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def shaken(module: torch.nn.Module) -> None:
    """The output layer starts at zero, which would hide everything below it."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 13, 17), (2, 12, 10, 8)])
def test_unet_step_in_bfloat16(shape):
    network = UNet(shape[0], shape[0], shape[1:], classes=4, channels=32, attention_size=16)
    shaken(network)
    x, noise = torch.randn(4, *shape), torch.randn(4)
    cond = {"label": torch.tensor([0, 1, 2, 3]), "drop": torch.tensor([False, True, False, False])}
    wanted = network.double()(x.double(), noise.double(), cond).float()
    network.float().cuda()
    cuda_cond = {key: value.cuda() for key, value in cond.items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    with torch.autocast("cuda", torch.bfloat16):
        found = network(x.cuda(), noise.cuda(), cuda_cond)
    assert (found.float().cpu() - wanted).norm() < 0.05 * wanted.norm()
    losses = []
    for _ in range(5):
        with torch.autocast("cuda", torch.bfloat16):
            loss = (network(x.cuda(), noise.cuda(), cuda_cond).float() - x.cuda()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in network.parameters())


@pytest.fixture(scope="module")
def module() -> DiffusionModule:
    module = built(composed(SMALL), DataSpec((1, 8, 8), 10), 0.6)[1].eval()
    shaken(module.network)
    return module


@pytest.mark.parametrize("sampler", sorted(path.stem for path in (CONF / "sampler").glob("*.yaml")))
def test_samplers_agree_with_the_cpu(module, sampler, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    function = factory(OmegaConf.load(CONF / "sampler" / f"{sampler}.yaml"))
    cond = {"label": torch.arange(6)}
    images = []
    for device in ("cpu", "cuda"):
        generative = GenerativeModel(module.denoiser.to(device), Identity(), function, LogSNR(steps=6))
        images.append(generative.sample((1, 8, 8), cond, seeds=range(6)))
    assert images[1].is_cuda
    torch.testing.assert_close(images[1].cpu(), images[0], rtol=0, atol=1e-3)
    module.to("cpu")


def test_training_and_sampling(tmp_path):
    run = run_training(
        tmp_path,
        "accelerator=gpu",
        "trainer.max_steps=20",
        "trainer.log_every_n_steps=5",
        "trainer.validate_every_n_steps=10",
    )
    assert len(train_rows(run / "metrics.csv")) == 4
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    assert content["global_step"] == 20
    assert all(value.dtype == torch.float32 for value in content["ema"].values())
    words = ["guidance=2", "sampler=heun", "grid.steps=4"]
    tasks.main(["sample", f"run={run}", "n=20", "device=cuda", *words])
    tasks.main(["sample", f"run={run}", "n=20", "device=cpu", *words, f"out={tmp_path / 'cpu'}"])
    with np.load(run / "sample" / "samples.npz") as file, np.load(tmp_path / "cpu" / "samples.npz") as reference:
        assert np.abs(file["images"].astype(int) - reference["images"]).max() <= 2
    assert json.loads((run / "sample" / "metrics.json").read_text())["evaluations_per_image"] > 7


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_and_sampling(tmp_path, monkeypatch, mode):
    replay, replays = torch.cuda.CUDAGraph.replay, []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph))[1])
    words = ["accelerator=gpu", "trainer.max_steps=10", "trainer.log_every_n_steps=1", "network.dropout=0"]
    run, plain = run_training(tmp_path, *words, f"accelerator.compile={mode}"), run_training(tmp_path / "plain", *words)
    for row, other in zip(losses(run), losses(plain), strict=True):
        assert float(row["train/loss"] or 0) == pytest.approx(float(other["train/loss"] or 0), rel=0.02)
    images = []
    for compile_ in (mode, "null"):
        out = tmp_path / compile_
        tasks.main(["sample", f"run={run}", "n=20", "batch_size=8", "device=cuda", f"compile={compile_}", f"out={out}"])
        images.append(np.load(out / "samples.npz")["images"].astype(int))
    assert np.abs(images[0] - images[1]).max() <= 2
    assert bool(replays) == (mode == "reduce-overhead")


class Watched(EMA):
    """Lets every wait of the host for the device raise, from a few steps after the start on; asks where things are."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert all(value.is_cuda for value in batch.values())
        assert all(value.is_cuda for value in self.average.values())
        assert trainer.datamodule._moved["train"].images.is_cuda


def test_no_wait_inside_a_training_step(tmp_path, monkeypatch):
    step, steps = DiffusionModule.training_step, []

    def watched(module, batch, batch_idx):
        steps.append(batch_idx)
        if batch_idx < 3:  # the first steps tune and allocate
            return step(module, batch, batch_idx)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(module, batch, batch_idx)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(DiffusionModule, "training_step", watched)
    run_training(tmp_path, "accelerator=gpu", "trainer.max_steps=8", "callbacks.ema._target_=tests.test_gpu.Watched")
    assert len(steps) == 8


def test_batches_are_made_without_a_wait():
    split = Digits().split("train").to("cuda")
    indices = torch.arange(64)
    split[indices]
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = split[indices]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch["image"].is_cuda and batch["label"].is_cuda


def test_average_and_budget_wait_for_nothing():
    from tests.callbacks.toy import Toy

    ema, module = EMA(), Toy().cuda()

    class Trainer:
        global_step, should_stop = 0, False

    ema.setup(Trainer, module, "fit")
    ema.on_train_start(Trainer, module)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for Trainer.global_step in (1, 2, 3):
            ema.on_train_batch_end(Trainer, module)
            Budget(10, 100.0).on_train_batch_end(Trainer)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_an_autoencoder_with_all_its_losses_and_a_model_of_its_latents_train(tmp_path):
    steps = ["accelerator=gpu", "trainer.max_steps=6", "trainer.validate_every_n_steps=3"]
    losses = ["discriminator=patch", "discriminator.channels=8", "model.loss.adversarial_start=2"]
    for model in ("autoencoder_kl", "autoencoder_vq"):
        folder = tmp_path / model
        autoencoder = run_training(folder, *steps, *losses, f"model={model}", base=AUTOENCODER)
        latent = run_training(folder, *steps, "experiment=digits_latent", f"codec.run={autoencoder}")
        tasks.main(["sample", f"run={latent}", "n=4"])
        tasks.main(["reconstruct", f"run={autoencoder}", "n=20", "classifier=false"])
        images = np.load(latent / "sample" / "samples.npz")["images"]
        assert images.shape == (4, 8, 8, 1)
