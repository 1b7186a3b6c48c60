"""Augmentations: random changes of the training images that the network is told of."""

from diffusion.augmentations.affine import Affine

__all__ = ["Affine"]
