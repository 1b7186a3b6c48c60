"""Linear operators: what is measured of an image. Torch alone."""

from diffusion.operators.base import Operator
from diffusion.operators.blur import Blur
from diffusion.operators.colour import Colour
from diffusion.operators.fourier import Fourier
from diffusion.operators.inpainting import Inpainting
from diffusion.operators.masks import SHARES, unknown
from diffusion.operators.super_resolution import SuperResolution

__all__ = ["SHARES", "Blur", "Colour", "Fourier", "Inpainting", "Operator", "SuperResolution", "unknown"]
