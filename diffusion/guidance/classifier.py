"""Guidance by the gradient of a classifier that reads noisy images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.denoiser import Cond, Denoiser, Prediction
from diffusion.denoiser import scale as shaped
from diffusion.devices import to_device
from diffusion.errors import UserError
from diffusion.guidance.base import Guidance
from diffusion.guidance.interval import Interval
from diffusion.parameterizations import X0


class NoisyClassifier(nn.Module, ABC):
    """p(label | x_t) for x_t = alpha x0 + sigma eps.

    It is a function of x_t / alpha and sigma / alpha alone, whatever scheduler made them, so it knows of none.

    noisiest: the largest sigma / alpha at which it can be asked.
    multi_label: whether several classes may hold at once, each by itself.
    """

    noisiest: float = math.inf
    multi_label: bool = False

    @abstractmethod
    def forward(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x_t (B, C, *S), alpha and sigma float64, () or (B,) -> logits (B, classes)."""

    def log_likelihood(self, logits: Tensor, label: Tensor) -> Tensor:
        """log p(label | x_t), (B,), for label int64 (B,) or, where several classes may hold, also (B, classes)."""
        if not self.multi_label:
            return -F.cross_entropy(logits, label, reduction="none")
        return -F.binary_cross_entropy_with_logits(logits, _hot(label, logits), reduction="none").sum(1)

    def right(self, logits: Tensor, label: Tensor) -> Tensor:
        """1 where the likeliest class is the right one, else 0; of several that may hold the share told right, (B,)."""
        if not self.multi_label:
            return (logits.argmax(1) == label).float()
        return ((logits > 0) == _hot(label, logits).bool()).float().mean(1)


def _hot(label: Tensor, logits: Tensor) -> Tensor:
    return (F.one_hot(label, logits.shape[1]) if label.ndim == 1 else label).to(logits)


class NetworkClassifier(NoisyClassifier):
    """A network G with logits G(input x_t, noise); both coefficients are those of every parameterization.

    Args:
        network: (x, c_noise) -> logits.
        sd: standard deviation of the data.
        noisiest, multi_label: see `NoisyClassifier`.
    """

    def __init__(self, network: nn.Module, sd: float, multi_label: bool = False, noisiest: float = math.inf):
        super().__init__()
        self.network, self.read = network, X0(sd)
        self.multi_label, self.noisiest = multi_label, noisiest

    def forward(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        c = self.read(alpha, sigma)
        noise = to_device(c.noise, x_t.device, torch.float32).expand(len(x_t))
        return self.network(shaped(c.input, x_t) * x_t, noise).float()


class ClassifierGuidance(Guidance):
    """D = D(x_t) + scale (sigma^2 / alpha) grad log p(label | x_t) where low < sigma / alpha <= high; D(x_t) elsewhere.

    With scale 1 and exact parts it is E[x0 | x_t, label], by Tweedie's formula, E[x0 | x_t] = (x_t + sigma^2 score) /
    alpha, and Bayes' rule for the score. The label goes to the denoiser too, which answers with it if it was trained
    with labels; one that was trained without is guided by the classifier alone. At alpha = 0, where x_t says nothing
    of the label, and above the classifier's `noisiest`, nothing is added. A learned covariance is left as it is: the
    classifier moves the mean (Dhariwal and Nichol 2021, algorithm 1). Source: the same, section 4, for any alpha and
    sigma.

    Where the times of a call lie on both sides of the interval, the classifier is asked for all of its samples. Raises
    UserError for values out of range.
    """

    asks = True

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: NoisyClassifier,
        scale: float = 1.0,
        low: float = 0.0,
        high: float = math.inf,
    ):
        super().__init__()
        if not math.isfinite(scale):
            raise UserError(f"guidance.scale={scale}: give a number; 0 is no guidance")
        self.denoiser, self.classifier = denoiser, classifier
        self.scheduler = denoiser.scheduler
        self.scale, self.interval = scale, Interval(low, high)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        if not cond or "label" not in cond:
            raise UserError("a classifier guides towards a class, and none is asked for: use guidance=none")
        found = self.denoiser.predict(x_t, t, cond)
        alpha, sigma = self.scheduler.alpha(t), self.scheduler.sigma(t)
        answers = (alpha > 0) & (sigma <= alpha * self.classifier.noisiest)
        guides = answers & self.interval.holds(self.scheduler, t)
        if self.scale == 0 or not guides.any():
            return found
        factor = torch.where(guides, self.scale * sigma**2 / alpha, 0.0)
        return found._replace(mean=found.mean + shaped(factor, x_t) * self._gradient(x_t, alpha, sigma, cond["label"]))

    def _gradient(self, x_t: Tensor, alpha: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """grad log p(label | x_t), (B, C, *S); itself differentiable where the caller differentiates."""
        keep = torch.is_grad_enabled() and x_t.requires_grad
        # Lightning validates in inference mode, whose tensors autograd cannot use: hence the copies.
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t if keep else x_t.detach().clone().requires_grad_()
            alpha, sigma, label = alpha.clone(), sigma.clone(), label.clone()
            likelihood = self.classifier.log_likelihood(self.classifier(x, alpha, sigma), label)
            return torch.autograd.grad(likelihood.sum(), x, create_graph=keep)[0]
