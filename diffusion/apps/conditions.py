"""What `sample` asks a steered run for, the controls of test images or a folder of masks; and whether it obeyed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from diffusion.apps.output import emptied, entry, mask_levels
from diffusion.apps.subject import data_of
from diffusion.controls import Control
from diffusion.errors import UserError
from diffusion.metrics import interval
from diffusion.metrics.segmentation import confusion, dice_of
from diffusion.models import Diffusion
from diffusion.random import generator
from diffusion.runs import Run
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import to_uint8
from diffusion.tasks.segment import Segmenter, mean_masks

ENSEMBLE = 8
"""Draws of a judge that draws masks."""
NEAR = 2
"""Grey levels by which a value may be off."""
log = logging.getLogger("diffusion")

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Asked:
    """Controls float (N, P, *S); the masks (N, *S) and the images uint8 (N, C, *S) they come of, where known."""

    control: Control
    controls: Tensor
    masks: Tensor | None
    images: Tensor | None
    labels: Tensor | None
    source: str

    def shown(self) -> Tensor:
        """The controls as images, uint8 (N, 1 or C, *S)."""
        return to_uint8(self.control.shown(self.controls))

    def as_picture(self, masks: Tensor) -> Tensor:
        """Masks (N, *S), as grey as `shown` has them."""
        return to_uint8(masks[:, None] * (2.0 / (self.control.spec.mask_classes - 1)) - 1)


def asked_for(run: Run, config: DictConfig) -> Asked | None:
    """n controls, or None for a run without one: of the masks in config.conditions, or of test images.

    Raises UserError where there are none such, and for a run that is told masks of others than images.
    """
    control = run.model.control(run.spec) if isinstance(run.model, Diffusion) else None
    if control is None:
        for key in ("conditions", "segmenter"):
            if config[key] is not None:
                raise UserError(f"{key}={config[key]}: this run was trained without a control; leave it out")
        return None
    if config.conditions is None:
        split = data_of(run, run.config, "the controls are of other images").split("test")
        split = split.take(evenly_spaced(len(split), min(config.n, len(split))))
        batch = split[torch.arange(config.n) % len(split)]
        masks = batch["mask"][:, 0].long() if "mask" in batch else None
        images = split.eight_bit().images[torch.arange(config.n) % len(split)]
        return Asked(control, control(batch), masks, images, batch.get("label"), "test images")
    if control.source != "mask":
        raise UserError(
            f"conditions={config.conditions}: this run's control is made of images: give them as dataset.path=..."
        )
    masks = read_masks(Path(config.conditions), run)
    if config.n > len(masks):
        log.info("%d masks for n=%d images: they are asked for again and again", len(masks), config.n)
    masks = masks[torch.arange(config.n) % len(masks)]
    return Asked(control, control({"mask": masks[:, None]}), masks, None, None, str(config.conditions))


def read_masks(folder: Path, run: Run) -> Tensor:
    """The masks of a folder's pictures in the order of their names, or of a masks.npz: int64 (N, *S).

    Their values are class indices, or those that the run's data have for the classes (dataset.values, by default from
    0 to 255 at even distances); pictures of another size are resized, each pixel to the nearest. Raises UserError for
    what is no mask of the run's classes.
    """
    classes, size = run.spec.mask_classes, run.spec.shape[1:]
    said = f"conditions={folder}"
    if folder.is_file() and folder.suffix == ".npz":
        with np.load(folder) as arrays:
            if "masks" not in arrays.files:
                raise UserError(f"{said} holds no `masks` (N, {', '.join(map(str, size))}), as `segment` writes them")
            found = [mask.squeeze() for mask in arrays["masks"]]
    elif folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        pictures = [_picture(path) for path in files]
        wanted = (size[1], size[0])
        if odd := sum(picture.size != wanted for picture in pictures):
            log.info("%s: %d of %d masks are brought to %s pixels", said, odd, len(files), " x ".join(map(str, size)))
        found = [np.asarray(picture.resize(wanted, Image.Resampling.NEAREST)) for picture in pictures]
    else:
        raise UserError(f"{said} does not exist: give a folder of masks, or the masks.npz that `segment` writes")
    if not found:
        raise UserError(f"{said} holds no pictures ({', '.join(SUFFIXES)})")
    values = np.asarray(run.config.dataset.get("values") or mask_levels(classes))
    masks = []
    for mask in found:
        if mask.shape != tuple(size):
            raise UserError(f"{said}: a mask of {mask.shape}, but the run makes images of {tuple(size)}")
        if mask.max() >= classes:
            nearest = np.searchsorted((values[1:] + values[:-1]) / 2, mask)
            if np.abs(values[nearest] - mask).max() > NEAR:
                odd = int(mask.flat[np.abs(values[nearest] - mask).argmax()])
                known = ", ".join(f"{value:g}" for value in values)
                raise UserError(f"{said}: a mask holds {odd}: give class indices, 0 to {classes - 1}, or {known}")
            mask = nearest
        masks.append(torch.from_numpy(mask.astype(np.int64)))
    return torch.stack(masks)


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.copy() if picture.mode in ("L", "P", "I;16") else picture.convert("L")
    except OSError as error:
        raise UserError(f"conditions: {path} cannot be read as a picture: {error}") from error


def save_pairs(folder: Path, images: Tensor, masks: Tensor, classes: int) -> None:
    """images/N.png and masks/N.png, such as dataset=masks reads with the values of `mask_levels`."""
    emptied(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    levels = torch.tensor(mask_levels(classes))[masks]
    said = ",".join(map(str, mask_levels(classes)))
    log.info("labelled pairs: dataset=masks dataset.path=%s dataset.values=[%s]", folder, said)
    for place, (image, mask) in enumerate(zip(images, levels, strict=True)):
        pixels = image.movedim(0, -1).squeeze(-1).numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{place:05d}.png")
        Image.fromarray(mask.to(torch.uint8).numpy()).save(folder / "masks" / f"{place:05d}.png")


def judge_of(config: DictConfig, asked: Asked, device: torch.device) -> Segmenter | None:
    """The segmenter of the run config.segmenter, which finds in samples what was asked for; None where none is given.

    Raises UserError where it finds no masks, or others, or there are no masks that were asked for.
    """
    if config.segmenter is None:
        return None
    run, spec = Run.open(config.segmenter, key="segmenter"), asked.control.spec
    segmenter = run.model.segmenter(run.spec, run.weights, device)
    if asked.masks is None:
        raise UserError("segmenter: the masks of these test images are not known; give data with masks")
    if (run.spec.shape, run.spec.mask_classes) != (spec.shape, spec.mask_classes):
        raise UserError(
            f"segmenter={config.segmenter} finds {run.spec.mask_classes} classes in images of {run.spec.shape}, but "
            f"these are {spec.mask_classes} in {spec.shape}"
        )
    if config.n < 2:
        raise UserError("segmenter: n=2 or more is needed, to compare with the masks of others")
    return segmenter


def adherence(
    judge: Segmenter, images: Tensor, asked: Asked, config: DictConfig, device: torch.device
) -> tuple[dict[str, Any], Tensor]:
    """How well the masks that are found in the images (N, C, *S) are those that were asked for.

    Dice of each class but the first, and its mean; beside it that of the same images with the masks of others, shuffled
    so that none keeps its own. And the masks found (N, *S).
    """
    found = mean_masks(judge, images, range(len(images)), ENSEMBLE, config.seed, config.batch_size, device).argmax(1)
    masks, classes = asked.masks, asked.control.spec.mask_classes
    order = torch.randperm(len(masks), generator=generator(config.seed, "shuffled"))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    figures = {}
    for name, wanted in {"asked": masks, "shuffled": masks[others]}.items():
        dice = dice_of(confusion(found, wanted, classes))[:, 1:]
        figures[name] = {f"class {k + 1}": float(each) for k, each in enumerate(dice.mean(0))}
        figures[name]["mean_dice"] = entry(interval(dice.mean(1).numpy(), seed=config.seed), len(dice))
    return figures, found
