"""Networks of two libraries, which were trained on photographs: timm and torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diffusion.errors import UserError
from diffusion.extractors.planar import Photographs, check_channels
from diffusion.extractors.weights import check_name, loading, optional, read_weights

if TYPE_CHECKING:
    import pytorch_lightning as pl


class Timm(Photographs):
    """The pooled features of a model of timm, as it gives them before its classifier.

    name: of the model, with or without a tag for its weights, such as resnet50.a1_in1k; see timm.list_models().
    path: a file of its weights, .safetensors or .pth, classifier included; None to download them from the Hugging
        Face hub, once.
    size: pixels of each side of its input; None for the model's own.

    Raises UserError for images that are not of one or three channels, a library that is not installed, a name that
    it does not know, weights that cannot be had or do not fit, and a size that the model does not take.
    """

    name = "timm"

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        cache: Path,
        device: torch.device | str = "cpu",
        name: str = "resnet50",
        path: str | None = None,
        size: int | None = None,
    ):
        check_channels(self.name, datamodule)
        if size is not None and (type(size) is not int or size < 1):
            raise UserError(f"extractor.size={size}: give the pixels of a side, or null for the model's own")
        with optional(self.name, "timm", 'pip install -e ".[timm]"'):
            import timm
        check_name(self.name, name, [*timm.list_models(), *timm.list_models(pretrained=True)])
        self.model, about = name, timm.models.get_pretrained_cfg(name)
        # Such models are made for one size, to which they then fit the weights.
        sized = {"img_size": size} if size and about.fixed_input_size else {}
        with loading(self.name, name, path):
            overlay = {"file": path, "custom_load": False} if path else None
            # With its classifier at first, because without one the library would let any weights pass.
            network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **sized)
            network.reset_classifier(0)
        side = size or about.input_size[1]
        super().__init__(datamodule, network, side, about.interpolation, (about.mean, about.std), device)

    def receipt(self) -> dict[str, Any]:
        return super().receipt() | {"model": self.model}


class Torchvision(Photographs):
    """The features of a classifier of torchvision, as its last linear layer receives them.

    name: of the model, such as resnet50; see torchvision.models.list_models().
    path: a file of its weights, in place of the download of the library's default ones, once, by torch.hub.

    Raises UserError for images that are not of one or three channels, a library that is not installed, a name that
    it does not know, a model without a linear layer, and weights that cannot be had or do not fit.
    """

    name = "torchvision"

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        cache: Path,
        device: torch.device | str = "cpu",
        name: str = "resnet50",
        path: str | None = None,
    ):
        check_channels(self.name, datamodule)
        with optional(self.name, "torchvision", "pip install torchvision"):
            from torchvision import models
        check_name(self.name, name, models.list_models(module=models))
        self.model, default = name, models.get_model_weights(name).DEFAULT
        with loading(self.name, name, path, default.url):
            network = models.get_model(name, weights=None if path else default, progress=False)
            if path:
                network.load_state_dict(read_weights(path))
                if hasattr(network, "transform_input"):
                    network.transform_input = True  # as the library does with its own weights
        linear = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UserError(
                f"extractor.name={name} has no linear layer, before which its features would be: choose another"
            )
        network.set_submodule(linear[-1], nn.Identity())
        about = default.transforms()
        side, interpolation = about.crop_size[0], about.interpolation.value
        super().__init__(datamodule, network, side, interpolation, (about.mean, about.std), device)

    def receipt(self) -> dict[str, Any]:
        return super().receipt() | {"model": self.model}
