"""One process trains by one tool: ours, or a library of diffusion models in the way that its own example has it.

    python benchmarks/peers.py diffusers --data FILE.npz --seconds 120 --samples OUT.npz

FILE.npz holds images, uint8 (N, S, S, C). After each optimizer step a line goes to the standard output: the seconds of
the monotonic clock at its end, and on a GPU the bytes of its memory that were held at most. Training ends after --steps
or --seconds of it, and with --samples the tool then draws --n images by its example's sampler, and says how long that
took. The networks are matched in multiply-adds, as benchmarks/networks.py has them (`--count` prints their size); batch
size and data are as given, in float32 and without accumulation; all else is the example's own:

- diffusers: examples/unconditional_image_generation/train_unconditional.py. AdamW 1e-4, warm-up of 500 steps, cosine
  over 100 epochs, averaged weights, flips of colour images, DDPM of 1,000 steps.
- monai: the tutorial generation/2d_ddpm. Adam 2.5e-5, random affine augmentation, images in [0, 1], DDPM of 1,000
  steps; its four workers of the loader, and as monai_without_workers, which two cores may like better.
- denoising_diffusion_pytorch: its README and Trainer. Adam 8e-5, averaged weights, flips of colour images, DDIM of 250
  steps.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import networks  # noqa: E402
from diffusion.errors import UserError  # noqa: E402

Sampler = Callable[[int], np.ndarray]
"""How many -> images, uint8 (n, S, S, C)."""


class Limit:
    """Called at the end of each step: tells the time, and whether another one is to follow.

    A GPU has then done what it was told; the most of its memory that tensors have had is told too.
    """

    def __init__(self, steps: int | None, seconds: float | None):
        self.steps, self.seconds, self.done, self.began = steps, seconds, 0, None
        self.out = os.fdopen(os.dup(1), "w", buffering=1)  # libraries print what they like

    def __call__(self) -> bool:
        import torch

        told = []
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            told = [torch.cuda.max_memory_allocated()]
        now = time.monotonic()
        # The clock starts with the first step's end, so that loading a library costs its users no training here.
        self.began = now if self.began is None else self.began
        self.done += 1
        self.out.write(" ".join(map(str, [now, *told])) + "\n")
        return not ((self.steps and self.done >= self.steps) or (self.seconds and now - self.began >= self.seconds))


@dataclass
class Task:
    """What every tool is given."""

    images: np.ndarray
    path: Path
    match: str
    batch_size: int
    another: Limit
    words: list[str]

    @property
    def size(self) -> int:
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        return self.images.shape[3]

    @property
    def shape(self) -> tuple[str, int, int]:
        """What benchmarks/networks.py makes a network of."""
        return self.match, self.size, self.channels


def ours(task: Task) -> None:
    import pytorch_lightning as pl

    from diffusion.apps import train as app
    from tests.training import composed

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            trainer.should_stop |= not task.another()

    callbacks_of, folder = app.callbacks_of, tempfile.mkdtemp()
    app.callbacks_of = lambda *args: [*callbacks_of(*args), Steps()]
    words = [f"network.{key}={json.dumps(value)}" for key, value in networks.our_words(task.match).items()]
    rare = ["trainer.validate_every_n_steps=1000000", "checkpoint.every_n_steps=1000000", "trainer.max_steps=1000000"]
    app.train(
        composed(
            [
                "experiment=bloodmnist_pixel",
                "dataset=npz",
                f"dataset.path={task.path}",
                "model.condition=[]",
                *(["augmentation=flips"] if task.channels == 3 else []),  # as the others have it
                f"batch_size={task.batch_size}",
                *rare,
                "trainer.max_time=null",
                f"runs_dir={folder}",
                "run_id=run",
                *words,
                *task.words,
            ]
        )
    )


def diffusers(task: Task) -> Sampler:
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import DDPMPipeline, DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from PIL import Image
    from torchvision import transforms

    accelerator = Accelerator()
    augmentations = transforms.Compose(
        [
            transforms.Resize(task.size, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(task.size),
            *([transforms.RandomHorizontalFlip()] if task.channels == 3 else []),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    pictures = [Image.fromarray(image.squeeze()) for image in task.images]
    items = _Mapped(pictures, lambda picture: {"input": augmentations(picture)})
    loader = torch.utils.data.DataLoader(items, batch_size=task.batch_size, shuffle=True, num_workers=0)
    model, scheduler = networks.diffusers(*task.shape), DDPMScheduler(num_train_timesteps=1000)
    average = EMAModel(
        model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, model_config=model.config
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100 * len(loader))
    model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
    going = True
    while going:
        for batch in loader:
            clean = batch["input"]
            noise = torch.randn(clean.shape, device=clean.device)
            times = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
            noisy = scheduler.add_noise(clean, noise, times)
            with accelerator.accumulate(model):
                loss = F.mse_loss(model(noisy, times).sample.float(), noise.float())
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            average.step(model.parameters())
            loss.detach().item()
            if not (going := task.another()):
                break
    average.copy_to(model.parameters())
    pipeline = DDPMPipeline(unet=accelerator.unwrap_model(model).eval(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def draw(n: int) -> np.ndarray:
        images = pipeline(batch_size=n, num_inference_steps=1000, output_type="np").images
        return (images * 255).round().astype(np.uint8)

    return draw


def monai(task: Task, workers: int = 4) -> Sampler:
    import torch
    import torch.nn.functional as F
    from monai.data import CacheDataset, DataLoader
    from monai.inferers import DiffusionInferer
    from monai.networks.schedulers import DDPMScheduler
    from monai.transforms import Compose, EnsureChannelFirstd, RandAffined, ScaleIntensityRanged

    transforms = Compose(
        [
            EnsureChannelFirstd(keys=["image"], channel_dim=-1),
            ScaleIntensityRanged(keys=["image"], a_min=0.0, a_max=255.0, b_min=0.0, b_max=1.0, clip=True),
            RandAffined(
                keys=["image"],
                rotate_range=[(-np.pi / 36, np.pi / 36), (-np.pi / 36, np.pi / 36)],
                translate_range=[(-1, 1), (-1, 1)],
                scale_range=[(-0.05, 0.05), (-0.05, 0.05)],
                spatial_size=[task.size, task.size],
                padding_mode="zeros",
                prob=0.5,
            ),
        ]
    )
    data = CacheDataset([{"image": image} for image in task.images], transforms, progress=False)
    loader = DataLoader(
        data, batch_size=task.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, scheduler = networks.monai(*task.shape).to(device), DDPMScheduler(num_train_timesteps=1000)
    optimizer, inferer = torch.optim.Adam(params=model.parameters(), lr=2.5e-5), DiffusionInferer(scheduler)
    going = True
    while going:
        model.train()
        for batch in loader:
            images = batch["image"].to(device)
            optimizer.zero_grad(set_to_none=True)
            noise = torch.randn_like(images)
            times = torch.randint(0, inferer.scheduler.num_train_timesteps, (len(images),), device=device).long()
            predicted = inferer(inputs=images, diffusion_model=model, noise=noise, timesteps=times)
            loss = F.mse_loss(predicted.float(), noise.float())
            loss.backward()
            optimizer.step()
            loss.item()
            if not (going := task.another()):
                break

    def draw(n: int) -> np.ndarray:
        scheduler.set_timesteps(num_inference_steps=1000)
        noise = torch.randn(n, task.channels, task.size, task.size, device=device)
        with torch.no_grad():
            images = inferer.sample(input_noise=noise, diffusion_model=model.eval(), scheduler=scheduler, verbose=False)
        return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    return draw


def denoising_diffusion_pytorch(task: Task) -> Sampler:
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer
    from PIL import Image

    folder = Path(tempfile.mkdtemp())
    (folder / "images").mkdir()
    for number, image in enumerate(task.images):
        Image.fromarray(image.squeeze()).save(folder / "images" / f"{number}.png")
    diffusion = GaussianDiffusion(
        networks.denoising_diffusion_pytorch(*task.shape), image_size=task.size, timesteps=1000, sampling_timesteps=250
    )
    trainer = Trainer(
        diffusion,
        str(folder / "images"),
        train_batch_size=task.batch_size,
        train_lr=8e-5,
        train_num_steps=10**9,
        gradient_accumulate_every=1,
        augment_horizontal_flip=task.channels == 3,
        save_and_sample_every=10**9,
        results_folder=str(folder / "results"),
        calculate_fid=False,
    )
    update = trainer.ema.update

    def update_and_tell() -> None:
        update()
        if not task.another():
            trainer.train_num_steps = trainer.step

    trainer.ema.update = update_and_tell
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.train()

    def draw(n: int) -> np.ndarray:
        import torch

        with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):
            images = trainer.ema.ema_model.eval().sample(batch_size=n)
        return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    return draw


def monai_without_workers(task: Task) -> Sampler:
    return monai(task, workers=0)


class _Mapped:
    def __init__(self, items: list, change: Callable):
        self.items, self.change = items, change

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.change(self.items[place])


def versions(tools: Collection[str], batch_size: int | None = None) -> dict[str, str]:
    """Of the libraries that these tools are of.

    Raises UserError where one is not installed, or does not train with batches of this size.
    """
    if batch_size is not None and batch_size < SMALLEST_BATCH and "denoising_diffusion_pytorch" in tools:
        raise UserError(f"--batch-size {batch_size}: denoising_diffusion_pytorch trains with {SMALLEST_BATCH} and more")
    needed = {package for tool in tools for package in PACKAGES[tool]}
    if lacking := [name for name in sorted(needed) if util.find_spec(name.replace("-", "_")) is None]:
        raise UserError(f'{", ".join(lacking)}: not installed; python -m pip install -e ".[benchmarks]"')
    return {name: metadata.version(name) for name in sorted(needed)}


TOOLS = {tool.__name__: tool for tool in (ours, diffusers, monai, monai_without_workers, denoising_diffusion_pytorch)}


SMALLEST_BATCH = 16
PACKAGES = {
    "ours": [],
    "diffusers": ["diffusers", "accelerate"],
    "monai": ["monai"],
    "monai_without_workers": ["monai"],
    "denoising_diffusion_pytorch": ["denoising-diffusion-pytorch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--match", choices=networks.MATCHES, default="wide", help="the size of the networks")
    parser.add_argument("--count", action="store_true", help="print the size of the network, and end")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--set", nargs="*", default=[], help="further words of train.py, for ours alone")
    options = parser.parse_args()
    if options.samples and options.tool == "ours":
        parser.error("ours draws by python -m diffusion sample")
    images = np.load(options.data)["train_images"]
    images = images if images.ndim == 4 else images[..., None]
    if options.count:
        library = options.tool.removesuffix("_without_workers")
        print(json.dumps(networks.counted(library, options.match, images.shape[1], images.shape[3])))
        return
    if options.tool != "ours":
        from diffusion.processor import limit_threads

        limit_threads()
    limit = Limit(options.steps, options.seconds)
    draw = TOOLS[options.tool](Task(images, options.data, options.match, options.batch_size, limit, options.set))
    if options.samples:
        start = time.monotonic()
        drawn = draw(options.n)
        seconds = time.monotonic() - start
        np.savez_compressed(options.samples, images=drawn.astype(np.uint8))
        limit.out.write(json.dumps({"steps": limit.done, "sampling_seconds": seconds, "n": len(drawn)}) + "\n")


if __name__ == "__main__":
    main()
