"""Augmentations: random changes of the training images, of which the network may be told."""

from diffusion.augmentations.affine import Affine
from diffusion.augmentations.base import Augmentation, Chain
from diffusion.augmentations.geometry import Geometry
from diffusion.augmentations.intensity import Intensity
from diffusion.augmentations.stain import Stain

__all__ = ["Affine", "Augmentation", "Chain", "Geometry", "Intensity", "Stain"]
