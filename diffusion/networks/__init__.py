"""Networks: F(x, c_noise, cond)."""

from diffusion.networks.unet import UNet

__all__ = ["UNet"]
