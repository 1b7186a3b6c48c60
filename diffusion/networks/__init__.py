"""Networks: F(x, c_noise, cond), autoencoders and what trains them, classifiers."""

from diffusion.networks.autoencoder import Autoencoder, Reconstruction
from diffusion.networks.bottlenecks import Bottleneck, Gaussian, VectorQuantizer
from diffusion.networks.classifier import Classifier
from diffusion.networks.cnn import CNN
from diffusion.networks.concatenated import Concatenated
from diffusion.networks.controlnet import ControlNet
from diffusion.networks.discriminator import PatchDiscriminator
from diffusion.networks.frozen import Frozen
from diffusion.networks.incomplete import Incomplete
from diffusion.networks.noisy_classifier import NoisyClassifier
from diffusion.networks.unet import UNet
from diffusion.networks.unet_diffusers import UNetDiffusers

__all__ = [
    "CNN",
    "Autoencoder",
    "Bottleneck",
    "Classifier",
    "Concatenated",
    "ControlNet",
    "Frozen",
    "Gaussian",
    "Incomplete",
    "NoisyClassifier",
    "PatchDiscriminator",
    "Reconstruction",
    "UNet",
    "UNetDiffusers",
    "VectorQuantizer",
]
