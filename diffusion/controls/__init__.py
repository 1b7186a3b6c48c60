"""Controls: what a network is told of each place, made from a batch."""

from diffusion.controls.base import Control
from diffusion.controls.edges import Canny, Hough, Scribbles
from diffusion.controls.image import Image, LowResolution
from diffusion.controls.mask import Mask

__all__ = ["Canny", "Control", "Hough", "Image", "LowResolution", "Mask", "Scribbles"]
