"""What an autoencoder is trained for: images that come back as they were, from latents that stay in bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffusion.errors import UserError
from diffusion.networks import Reconstruction


@dataclass(frozen=True)
class ReconstructionLoss:
    """mean |x - x'|^power + penalty * P + perceptual * L + adversarial * lambda * G, as in Esser et al. 2021, eq. 5-7.

    P is the bottleneck's (the divergence of its posterior, or its commitment), L a distance of features, G what the
    discriminator says of the reconstructions, from step `adversarial_start` on, and lambda the adaptive weight. The
    terms L and G are there where the groups `perceptual` and `discriminator` give them a network.

    Raises UserError for a power that is not positive, or a negative weight or start.
    """

    power: float = 2.0
    penalty: float = 1e-5
    perceptual: float = 3e-3
    adversarial: float = 0.1
    adversarial_start: int = 1000

    def __post_init__(self):
        if self.power <= 0:
            raise UserError(f"model.loss.power={self.power}: give 1 for the absolute error, 2 for the squared one")
        for name in ("penalty", "perceptual", "adversarial", "adversarial_start"):
            if getattr(self, name) < 0:
                raise UserError(f"model.loss.{name}={getattr(self, name)}: give 0 or more")

    def terms(
        self, images: Tensor, found: Reconstruction, perceptual: Callable[[Tensor, Tensor], Tensor] | None
    ) -> dict[str, Tensor]:
        """The terms without their weights, each (), the mean over images (B, C, *S) in [-1, 1]."""
        terms = {
            "distance": (found.images.float() - images).abs().pow(self.power).mean(),
            "penalty": found.penalty.mean(),
        }
        if perceptual is not None:
            terms["perceptual"] = perceptual(images, found.images.float()).mean()
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of `terms`, ()."""
        weights = {"distance": 1.0, "penalty": self.penalty, "perceptual": self.perceptual}
        return sum(weights[name] * value for name, value in terms.items())
