"""Bottlenecks: what an autoencoder does between its encoder and its decoder.

Shapes below: B batch, c latent channels, s the latents' (h, w) or (d, h, w).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.random import Noise, generator


class Bottleneck(nn.Module, ABC):
    """From the encoder's features (B, features, *s) to latents (B, c, *s), and on to what the decoder gets."""

    features: int
    """How many channels the encoder must give."""

    @abstractmethod
    def moments(self, features: Tensor) -> Tensor:
        """What of the features is worth keeping, (B, M, *s) float32: all that `draw` needs, and nothing random."""

    @abstractmethod
    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        """Latents (B, c, *s) float32 from moments; their mean if rng is None."""

    @abstractmethod
    def restore(self, latents: Tensor) -> Tensor:
        """What the decoder gets, (B, c, *s), for latents that may come from anywhere."""

    @abstractmethod
    def forward(self, features: Tensor, rng: Noise | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What the decoder gets (B, c, *s), the penalty (B,) float32, and detached scalars to log."""


class Gaussian(Bottleneck):
    """A diagonal normal posterior N(mean, std^2) for each latent value, held near N(0, 1) by its divergence.

    The features are the mean and the log-variance, the latter held in [-30, 20]. The penalty is
    KL = (mean^2 + std^2 - 1 - log std^2) / 2 (Kingma and Welling 2014, appendix B), as the mean over the c * prod(s)
    values of a sample's latents in place of their sum, so that its weight means the same at every size.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.features = 2 * channels

    def moments(self, features: Tensor) -> Tensor:
        """Mean and standard deviation, (B, 2c, *s)."""
        mean, log_variance = self._posterior(features)
        return torch.cat([mean, (log_variance / 2).exp()], 1)

    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        mean, std = moments.chunk(2, 1)
        return mean if rng is None else mean + std * rng(mean.shape[1:])

    def restore(self, latents: Tensor) -> Tensor:
        return latents

    def forward(self, features: Tensor, rng: Noise | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        mean, log_variance = self._posterior(features)
        divergence = (mean.square() + log_variance.expm1() - log_variance) / 2
        penalty = divergence.flatten(1).mean(1)
        latents = self.draw(self.moments(features), rng)
        return latents, penalty, {"kl": penalty.detach().mean()}

    def _posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = features.float().chunk(2, 1)
        return mean, log_variance.clamp(-30.0, 20.0)


class VectorQuantizer(Bottleneck):
    """Each position's feature vector f becomes the nearest of K codes (van den Oord et al. 2017).

    Latents are the features before they are quantised; `restore` quantises. The decoder's gradient passes to f
    unchanged, and the penalty is the commitment |f - code|^2 without gradient to the code, as the mean over a sample's
    values.

    The codes learn without gradients (appendix A.1): in training, each batch's number of vectors n_k and their sum m_k
    nearest to code k move averages, N_k += (1 - decay)(n_k - N_k) and M_k alike, and code k = M_k / N_k, with N_k
    smoothed as (N_k + e) / (N + K e) N, N = sum N_k, e = 1e-5. Before the first update the codes are drawn from that
    batch's features; and a code with N_k < revive_below * N / K moves to one of the batch's, with N_k = N / K. At the
    values below a code that nothing is near moves after about 300 updates, while one of a tenth of the common use
    stays. What is drawn depends on the number of updates alone. With several processes the batch is that of all of
    them, and drawn from the first one's share, so that all hold the same codes.

    Args:
        channels: of the latents.
        codes: K.
        decay: of the averages; every forward pass in training is an update.
        revive_below: share of uniform use; 0 for no revival.

    Raises UserError for values out of range.
    """

    def __init__(self, channels: int, codes: int = 512, decay: float = 0.99, revive_below: float = 0.05):
        super().__init__()
        if codes < 2:
            raise UserError(f"model.network.bottleneck.codes={codes}: give at least 2")
        for name, value in {"decay": decay, "revive_below": revive_below}.items():
            if not 0 <= value < 1:
                raise UserError(f"model.network.bottleneck.{name}={value}: give a number from 0 to below 1")
        self.features, self.decay, self.revive_below = channels, decay, revive_below
        self.register_buffer("codebook", torch.randn(codes, channels))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def moments(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features.float()

    def draw(self, moments: Tensor, rng: Noise | None) -> Tensor:
        return moments

    def restore(self, latents: Tensor) -> Tensor:
        codes = _as_image(self.codebook[self._nearest(_vectors(latents))], latents)
        # To the bit the codes, with the gradient of the latents.
        return codes + (latents - latents.detach())

    def forward(self, features: Tensor, rng: Noise | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        features = features.float()
        vectors = _vectors(features.detach())
        candidates = self._candidates(vectors) if self.training else None
        nearest = self._nearest(vectors)
        codes = _as_image(self.codebook[nearest], features)
        penalty = (features - codes).square().flatten(1).mean(1)
        counts = torch.bincount(nearest, minlength=len(self.codebook)).float()
        use = counts / counts.sum()
        if self.training:
            self._update(vectors, nearest, counts, candidates)
        statistics = {"perplexity": torch.special.entr(use).sum().exp(), "codes_used": (use > 0).float().mean()}
        return features + (codes - features).detach(), penalty, statistics

    @torch.no_grad()
    def _nearest(self, vectors: Tensor) -> Tensor:
        """The index of the nearest code of each vector, (N,) int64."""
        # |f - code|^2 without |f|^2; bfloat16 would mistake neighbours.
        with torch.autocast(vectors.device.type, enabled=False):
            return (self.codebook.square().sum(1) - 2 * vectors @ self.codebook.T).argmin(1)

    @torch.no_grad()
    def _candidates(self, vectors: Tensor) -> Tensor:
        """For each code a vector of the batch that it may move to, (K, c); at the first update they are the codes."""
        updates, codes = int(self.updates), len(self.codebook)
        order = torch.randperm(len(vectors), generator=generator("codebook", updates))
        order = order.repeat(-(-codes // len(order)))[:codes]
        candidates = vectors[order.to(vectors.device)]
        if _together():
            dist.broadcast(candidates, src=0)
        if updates == 0:
            self.codebook.copy_(candidates)
        return candidates

    @torch.no_grad()
    def _update(self, vectors: Tensor, nearest: Tensor, counts: Tensor, candidates: Tensor) -> None:
        # A product of matrices, as adding at indices has no fixed order on a GPU.
        hot = torch.nn.functional.one_hot(nearest, len(self.codebook)).float()
        with torch.autocast(vectors.device.type, enabled=False):
            batch = torch.cat([hot.T @ vectors, counts[:, None]], 1)  # (K, c + 1)
        if _together():
            dist.all_reduce(batch)
        sums, counts = batch[:, :-1], batch[:, -1]
        if int(self.updates) == 0:
            self.counts.fill_(counts.sum() / len(counts))
            self.sums.copy_(self.codebook * self.counts[:, None])
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        common = self.counts.mean()
        idle = self.counts < self.revive_below * common
        self.counts.copy_(torch.where(idle, common, self.counts))
        self.sums.copy_(torch.where(idle[:, None], candidates * common, self.sums))
        total, epsilon = self.counts.sum(), 1e-5
        smoothed = (self.counts + epsilon) / (total + len(counts) * epsilon) * total
        self.codebook.copy_(self.sums / smoothed[:, None])
        self.updates += 1


def _vectors(images: Tensor) -> Tensor:
    """(B, c, *s) -> (B * prod(s), c) float32."""
    return images.float().movedim(1, -1).flatten(0, -2)


def _as_image(vectors: Tensor, images: Tensor) -> Tensor:
    """The inverse of `_vectors`, for the shape of `images`."""
    return vectors.unflatten(0, (len(images), *images.shape[2:])).movedim(-1, 1)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
