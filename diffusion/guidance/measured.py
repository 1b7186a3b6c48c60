"""Something of the image was measured: y = h(x0) + noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.denoiser import Cond, Denoiser, Prediction, scale
from diffusion.errors import UserError

Measure = Callable[[Tensor], Tensor]
"""x0 (B, C, *S) -> y (B, ...), differentiable, each sample by itself: an operator, after a codec's decoder or not."""


class Measured(Denoiser):
    """E[x0 | x_t, y] for a measurement y = h(x0) + noise z, h linear or nearly so about D.

    With V = (sigma^2 / alpha) dD/dx_t, which is Cov[x0 | x_t] by Tweedie's formula, and H = dh/dx0 at D,

        D(x_t, y) = D + V H^T (H V H^T + noise^2)^-1 (y - h(D)),

    the conditional mean of the normal that has the two moments of p(x0 | x_t): exact where x0 is normal and h linear.
    The inverse is applied by conjugate gradients, whose every iteration differentiates D once; few are enough, and
    fewer hold back what a network gets wrong in V. Where alpha = 0, x_t says nothing of x0, and D is left as it is.
    A learned variance is left as it is too. Sources: Rozet et al. 2024 (moment matching posterior sampling), section 4;
    Finzi et al. 2023 and Boys et al. 2023 for the covariance. An isotropic V in the inverse is Pi-GDM (Song et al.
    2023).

    Args:
        y: (B, ...), the measurement of each sample.
        noise: its standard deviation; above 0, of rounding at the least, for no measurement is exact.

    Raises UserError for noise or iterations out of range.
    """

    def __init__(self, denoiser: Denoiser, measure: Measure, y: Tensor, noise: float, iterations: int = 3):
        super().__init__()
        if not noise > 0:
            raise UserError(f"noise={noise}: give a number above 0, the standard deviation of what is measured")
        if iterations < 1:
            raise UserError(f"iterations={iterations}: ask for at least 1")
        self.denoiser, self.scheduler = denoiser, denoiser.scheduler
        self.measure, self.y, self.noise, self.iterations = measure, y, noise, iterations

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        alpha, sigma = self.scheduler.alpha(t), self.scheduler.sigma(t)
        if not (alpha > 0).all():
            return self.denoiser.predict(x_t, t, cond)
        gain = scale(sigma**2 / alpha, x_t)
        # Samplers run without gradients, and validation in inference mode, whose tensors autograd cannot use.
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            found = self.denoiser.predict(x, t, cond)
            x0 = found.mean.detach().requires_grad_()
            # Of all kinds of attention, which a decoder may have, this one can be differentiated twice.
            with sdpa_kernel(SDPBackend.MATH):
                seen = self.measure(x0)
            # H^T w as a function of w: its own derivative is H, so that one graph serves both.
            w = torch.zeros_like(seen).requires_grad_()
            (pulled,) = torch.autograd.grad(seen, x0, w, create_graph=True)

        def spread(w_: Tensor) -> Tensor:  # V H^T w
            (u,) = torch.autograd.grad(seen, x0, w_, retain_graph=True)
            (u,) = torch.autograd.grad(found.mean, x, u, retain_graph=True)
            return gain * u

        def covariance(w_: Tensor) -> Tensor:
            (v,) = torch.autograd.grad(pulled, w, spread(w_), retain_graph=True)
            return v + self.noise**2 * w_

        solved = conjugate_gradients(covariance, self.y - seen.detach(), self.iterations)
        return found._replace(
            mean=(x0 + spread(solved)).detach(),
            fraction=None if found.fraction is None else found.fraction.detach(),
        )


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x with matrix(x) = b, for each sample of b (B, ...) by itself, from x = 0; matrix symmetric and positive.

    A sample stops where it is done, and where a matrix that is not positive along a direction would lead it astray.
    Source: Hestenes and Stiefel 1952.
    """
    x, rest = torch.zeros_like(b), b.clone()
    direction, size = rest, _dot(rest, rest)
    # Of float32 products no more than this is left to find.
    floor = size * torch.finfo(b.dtype).eps ** 2
    for _ in range(iterations):
        product = matrix(direction)
        curvature = _dot(direction, product)
        going = (curvature > 0) & (size > floor)
        step = torch.where(going, size / curvature, 0.0)
        x, rest = x + step * direction, rest - step * product
        before, size = size, torch.where(going, _dot(rest, rest), 0.0)
        direction = rest + torch.where(going, size / before, 0.0) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of each sample of a with that of b, shaped to multiply them."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))
