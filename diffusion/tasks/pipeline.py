"""Images redrawn by a pretrained Stable Diffusion: a pipeline of the diffusers library, which is an optional extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.errors import UserError
from diffusion.networks.hub import library
from diffusion.random import generator


class Pipeline:
    """`tasks.augment.Redraw` of a StableDiffusionImg2ImgPipeline.

    path: its folder; nothing is downloaded, and it has no safety checker, which blackens pictures of tissue
    prompts: what it is told of each class, or one for all
    size: pixels along each side of what it is shown; None: what its U-Net was made for. Images are resized to it, grey
        ones shown in all three channels, and what comes back is resized and averaged
    steps: of its scheduler, from noise alone
    scale: of its classifier-free guidance; 1 for none
    Raises UserError where the library is not installed, or the folder holds no such pipeline.
    """

    def __init__(
        self,
        path: str | Path,
        prompts: Sequence[str],
        size: int | None = None,
        steps: int = 50,
        scale: float = 7.5,
        device: torch.device | str = "cpu",
    ):
        img2img = library(f"pipeline={path}").StableDiffusionImg2ImgPipeline
        if not (Path(path) / "model_index.json").is_file():
            raise UserError(
                f"pipeline={path} holds no model_index.json: give the folder of a Stable Diffusion pipeline"
            )
        try:
            self.pipeline = img2img.from_pretrained(
                str(path), safety_checker=None, requires_safety_checker=False, local_files_only=True
            ).to(device)
        # What the library and those below it raise has no common base.
        except Exception as error:
            raise UserError(
                f"pipeline={path} could not be loaded ({' '.join(str(error).split())}): give the folder of a Stable "
                'Diffusion pipeline; it needs transformers too: pip install "transformers>=4.50"'
            ) from error
        if not hasattr(self.pipeline.scheduler, "alphas_cumprod"):
            raise UserError(
                f"pipeline={path}: its scheduler, {type(self.pipeline.scheduler).__name__}, has no alphas_cumprod, "
                "without which no strength means anything: save it with a DDIMScheduler"
            )
        self.pipeline.set_progress_bar_config(disable=True)
        factor = self.pipeline.vae_scale_factor
        self.size = self.pipeline.unet.config.sample_size * factor if size is None else size
        if self.size % factor:
            raise UserError(f"size={size}: the pipeline reduces images {factor} times; give a multiple of it")
        self.prompts, self.steps, self.scale, self.device = list(prompts), steps, scale, device

    def steps_of(self, strength: float) -> int:
        """How many of the last steps are taken: from where sqrt(1 - alphas_cumprod) reaches the strength; 1 at least.

        At a strength of 1 all are, which begin where the scheduler ends: Stable Diffusion's own leaves a trace of the
        image there.
        """
        noise = (1 - self.pipeline.scheduler.alphas_cumprod.double()).sqrt()
        reached = (noise < strength).double().mean().item()
        return max(1, round(reached * self.steps))

    def strength_of(self, strength: float) -> float:
        """What the library calls strength: the share of the steps that are taken."""
        return self.steps_of(strength) / self.steps

    @torch.no_grad()
    def __call__(self, images: Tensor, strength: float, labels: Tensor | None, seeds: Sequence[int]) -> Tensor:
        """Images (B, 1 or 3, H, W) in [-1, 1] -> as many, (B, 1 or 3, H, W) float32. Each depends on its seed alone."""
        channels, shape, count = images.shape[1], images.shape[2:], self.steps_of(strength)
        shown = resized((images + 1) / 2, (self.size, self.size)).clamp(0, 1).expand(-1, 3, -1, -1)
        given = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
        found = self.pipeline(
            prompt=[self.prompts[k] for k in given.tolist()],
            image=shown.to(self.device),
            # Half a step more, because the library rounds down what was divided here.
            strength=min(1.0, (count + 0.5) / self.steps),
            num_inference_steps=self.steps,
            guidance_scale=self.scale,
            generator=[generator("sample", seed) for seed in seeds],
            output_type="pt",
        ).images.float()
        found = resized(found, shape)
        return (found.mean(1, keepdim=True) if channels == 1 else found) * 2 - 1


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) by bicubic interpolation without aliasing."""
    return F.interpolate(images, tuple(size), mode="bicubic", antialias=True, align_corners=False)
