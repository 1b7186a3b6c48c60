"""model=mask_ddpm: a diffusion model whose samples are masks of the image that it is told."""

from __future__ import annotations

import pytorch_lightning as pl
import torch

from datamodules.batch import DataSpec
from diffusion.controls import Control
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.models.base import Weights
from diffusion.models.deviation import AT_ONCE, std_of
from diffusion.models.diffusion import Diffusion
from diffusion.tasks.segment import DrawnMasks


class MaskDiffusion(Diffusion):
    """A denoiser of masks in a codec for them: codec=one_hot, or analog_bits. The control is the image."""

    diffuses = "mask"
    makes_images = False
    next_task = "segment"

    def _makes_no_images(self) -> str:
        return f"a run of {self.config.experiment} draws masks of images: use `python -m diffusion {self.next_task}`"

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        """(K, *S). Raises UserError for data without masks."""
        if spec.mask_classes is None:
            raise UserError("model=mask_ddpm needs data with masks: dataset=masks, or a table with a column of masks")
        return (spec.mask_classes, *spec.shape[1:])

    def control(self, spec: DataSpec) -> Control:
        control = super().control(spec)
        if control is None or control.source != "image":
            raise UserError("model=mask_ddpm draws the mask of an image, which it has to be told: use control=image")
        return control

    def check_known(self, spec: DataSpec) -> None:
        raise UserError("model.known=mask is for images: a mask has no mask")

    def std(self, datamodule: pl.LightningDataModule) -> float:
        """Of the encoded training masks."""
        codec = self.codec.for_images(self.shape(datamodule.spec))
        masks = datamodule.split("train").masks
        places = torch.arange(len(masks)).split(AT_ONCE)
        return std_of(codec.draw(masks[place].float(), None) for place in places)

    def denoising(self, spec: DataSpec, weights: Weights) -> GenerativeModel:
        raise UserError(self._makes_no_images())

    def segmenter(self, spec: DataSpec, weights: Weights, device: torch.device | str) -> DrawnMasks:
        generative = self.generative(spec, weights)
        generative.denoiser.to(device)
        return DrawnMasks(generative, spec.mask_classes, self.control(spec))
