"""A folder that the pipelines of the diffusers library load, with the same images from the same noise."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from diffusion.apps.sample import numbered
from diffusion.denoiser import Cond, NetworkDenoiser
from diffusion.errors import UserError
from diffusion.grids import Uniform
from diffusion.networks import UNetDiffusers, hub
from diffusion.runs import Run
from diffusion.samplers import ddim
from diffusion.tasks.export import betas, prediction_type, rows_of

STEPS = 50
NONE = "none"
OTHERWISE = "or take to=safetensors or to=onnx"


class ToDiffusers:
    """`UNet2DModel` and `DDPMScheduler`, which DDPMPipeline takes as it is, and DDIMPipeline makes its own of.

    Raises UserError for what has no equivalent there.
    """

    library = "diffusers"

    def __init__(self, run: Run, config: DictConfig):
        self.diffusers = hub.library("to=diffusers")
        if run.config.data.codec_fingerprint is not None:
            raise UserError(
                f"no pipeline of diffusers joins a UNet2DModel and a codec: export a run in pixels, {OTHERWISE}"
            )
        if teacher := run.config.model.get("teacher"):
            raise UserError(
                f"the pipelines of diffusers draw in steps of their own, and a student in those that it has learnt: "
                f"export its teacher, {teacher}, {OTHERWISE}"
            )
        self.shape = run.spec.shape
        if len(self.shape) != 3:
            raise UserError(
                f"UNet2DModel is 2-D, and the images have shape {self.shape}: take to=safetensors or to=onnx"
            )
        denoiser: NetworkDenoiser = run.generative().denoiser
        network = denoiser.network
        if not isinstance(network, UNetDiffusers):
            raise UserError(
                f"diffusers has no {type(network).__name__} as here: train with network=unet_diffusers, {OTHERWISE}"
            )
        if denoiser.covariance:
            raise UserError(f"DDIMPipeline takes no learned covariance: train with objective=simple, {OTHERWISE}")
        self.rows, self.denoiser = network.rows, denoiser
        self.betas, self.prediction = betas(denoiser, self.rows), prediction_type(denoiser, self.rows)
        _, _, c = denoiser.coefficients(rows_of(self.rows))
        if not torch.equal(network.timesteps(c.noise.float()), torch.arange(self.rows).float()):
            raise UserError(f"the timesteps of this network are of another schedule than the run's: {OTHERWISE[3:]}")
        size = self.shape[1:]
        if any(side % network.factor for side in size):
            raise UserError(
                f"images of {size[0]} x {size[1]} are padded here to multiples of {network.factor}, and not by the "
                f"pipelines: train with fewer network.multipliers, {OTHERWISE}"
            )
        self.label = chosen(config.label, run, network.classes)
        self.unet = unconditional(network.unet, self.label)
        self.unet.register_to_config(sample_size=size[0] if size[0] == size[1] else list(size))

    def write(self, out: Path) -> None:
        scheduler = self.diffusers.DDPMScheduler(
            num_train_timesteps=self.rows,
            trained_betas=self.betas.tolist(),
            prediction_type=self.prediction,
            clip_sample=False,
            # Rows T - 1, T - 1 - T/n, ...: the uniform grid of n steps, for n that divide T.
            timestep_spacing="trailing",
        )
        self.diffusers.DDPMPipeline(self.unet, scheduler).save_pretrained(out, safe_serialization=True)

    @torch.no_grad()
    def images(self, out: Path, n: int, seed: int) -> tuple[Tensor, Tensor]:
        steps = max(steps for steps in range(1, STEPS + 1) if self.rows % steps == 0)
        self.diffusers.utils.logging.disable_progress_bar()
        pipeline = self.diffusers.DDIMPipeline.from_pretrained(out, low_cpu_mem_usage=False)
        self.diffusers.utils.logging.enable_progress_bar()
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": steps, "output_type": "pt"}
        there = pipeline(n, torch.Generator().manual_seed(seed), **options).images
        x = torch.randn((n, *self.shape), generator=torch.Generator().manual_seed(seed))
        here = ddim(self.denoiser, x, Uniform(steps)(self.denoiser.scheduler), self.condition(n))
        return here, there * 2 - 1

    def condition(self, n: int) -> Cond | None:
        """What the denoiser is told, for the images that the pipeline draws."""
        if self.label is None:
            return None
        return {
            "label": torch.full((n,), min(self.label, self.denoiser.network.classes - 1)),
            "drop": torch.full((n,), self.label == self.denoiser.network.classes),
        }

    @property
    def usage(self) -> str:
        return (
            "from diffusers import DDIMPipeline  # or DDPMPipeline, for ancestral steps\n\n"
            'pipeline = DDIMPipeline.from_pretrained("FOLDER")\n'
            f"images = pipeline(batch_size=16, num_inference_steps={STEPS}).images"
        )


def chosen(label: object, run: Run, classes: int | None) -> int | None:
    """The class to export, `classes` for none of them; None where the network is told none."""
    if classes is None:
        if label is not None:
            raise UserError(f"label={label}: this run was trained without labels; leave it out")
        return None
    if label is None:
        raise UserError(
            f"the pipelines pass no labels: export one class, label=0 ... label={classes - 1} or its name, or what the "
            f"network draws without one, label={NONE}"
        )
    if label == NONE:
        if run.config.model.label_dropout == 0:
            raise UserError("label=none needs model.label_dropout above 0 in training: choose a class")
        return classes
    number = numbered(label, run.spec)
    if type(number) is not int or not 0 <= number < classes:
        raise UserError(f"label={label}: give a class from 0 to {classes - 1} or its name, or label={NONE}")
    return number


def unconditional(unet: nn.Module, label: int | None) -> nn.Module:
    """The UNet2DModel of one class: its embedding is added to the time's, so it becomes a part of the last bias."""
    if label is None:
        return unet
    keys = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    weights = dict(unet.state_dict())
    of_class = weights.pop("class_embedding.weight")[label]
    weights["time_embedding.linear_2.bias"] = weights["time_embedding.linear_2.bias"] + of_class
    alone = type(unet)(**keys | {"num_class_embeds": None}).eval()
    alone.load_state_dict(weights)
    return alone
