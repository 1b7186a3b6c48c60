"""How likely a model finds images: the variational bound, and the exact change of variables along the flow.

Both are in bits per dimension of images whose values are 256 levels in [-1, 1], at k / 127.5 - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import Cond, Denoiser, scale
from diffusion.errors import UserError
from diffusion.objectives import step_divergence
from diffusion.schedulers import posterior

HALF_LEVEL = 1 / 255
LEVELS_PER_UNIT = 127.5


@dataclass(frozen=True)
class BoundTerms:
    """The terms of the bound, bits per dimension: prior L_T (B,), steps L_t (B, steps - 1), decoder L_0 (B,)."""

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log2 p(x) of each image, (B,)."""
        return self.prior + self.steps.sum(1) + self.decoder


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    x0: Tensor,
    grid: Tensor,
    cond: Cond | None = None,
    *,
    noise: Callable[[int], Tensor],
    variance: float | None = None,
    on_step: Callable[[int], None] | None = None,
) -> BoundTerms:
    """L_T + sum L_t + L_0 of ancestral sampling along a grid, each term with one draw of the noise.

    - L_T = KL(q(x_T | x0) || N(0, sigma_T^2)), T = grid[0]; sampling starts from that normal.
    - L_t = KL(q(x_s | x_t, x0) || N(mean, beta^v beta~^(1 - v))), v = `variance`, or None for the one that the model
      has learned (0 where it has not): what `samplers.ddpm` draws from.
    - L_0 = -log2 P(level of x0 | N(D(x_t), (sigma_t / alpha_t)^2)), t = grid[-2], the outermost levels open: the
      data's own levels seen through the last noise.

    x0 (B, C, *S) holds levels; noise(i) is the noise (B, C, *S) of step i. Source: Ho et al. 2020, eq. 5 and 13, for
    any alpha and sigma.
    """
    scheduler, terms = denoiser.scheduler, []
    alpha, sigma = scheduler.alpha(grid[0]), scheduler.sigma(grid[0])
    prior = scale(alpha / sigma, x0) ** 2 * x0.square() / 2 / math.log(2)
    for i, t in enumerate(grid[:-1]):
        x_t = scale(scheduler.alpha(t), x0) * x0 + scale(scheduler.sigma(t), x0) * noise(i)
        found = denoiser.predict(x_t, t, cond)
        if i == len(grid) - 2:
            decoder = level_bits(x0, found.mean, (scheduler.sigma(t) / scheduler.alpha(t)).item())
        else:
            step = posterior(scheduler, t, grid[i + 1])
            terms.append(step_divergence(step, x0, found.mean, found.variance(variance)))
        if on_step is not None:
            on_step(i)
    steps = torch.stack(terms, 1) if terms else x0.new_zeros(len(x0), 0)
    return BoundTerms(prior.flatten(1).mean(1), steps, decoder.flatten(1).mean(1).to(x0))


def level_bits(x0: Tensor, mean: Tensor, std: float) -> Tensor:
    """-log2 of the probability that N(mean, std^2) falls to the level of x0, elementwise; the outermost are open."""
    x0, mean = x0.cpu().double(), mean.cpu().double()  # the CPU has float64 everywhere
    upper = torch.where(x0 > 1 - HALF_LEVEL, torch.inf, (x0 + HALF_LEVEL - mean) / std)
    lower = torch.where(x0 < HALF_LEVEL - 1, -torch.inf, (x0 - HALF_LEVEL - mean) / std)
    # In the upper tail both are near 1: by symmetry the lower tail keeps the digits.
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return -(log_upper + torch.log1p(-torch.exp(log_lower - log_upper))) / math.log(2)


def flow_bits(
    denoiser: Denoiser,
    images: Tensor,
    cond: Cond | None = None,
    *,
    offsets: Tensor,
    probes: Tensor,
    ends: tuple[float, float] = (12.0, -12.0),
    tolerance: float = 1e-4,
    on_time: Callable[[float], None] | None = None,
) -> tuple[Tensor, int]:
    """-log2 p(level) <= -E log2 p(x) - log2(level width) by the probability-flow ODE; bits (B,), and evaluations.

    x = image + offset is the image dequantised uniformly within its levels: offsets (B, C, *S) in [0, 1). With
    u = log(sigma / alpha) and z = x_t / sqrt(alpha^2 + sigma^2) the flow is

        dz / du = z / (1 + e^2u) - D / sqrt(1 + e^2u),    d log p(z) / du = -trace of its Jacobian,

    which stays bounded to both ends. The trace is Hutchinson's estimate with the `probes`, signs (B, C, *S). The start
    takes x as it is for x_t at log-SNR ends[0], and the end, at ends[1] or the schedule's last, is the normal that
    sampling starts from. Solver: Dormand and Prince's pair (scipy's RK45) at this relative and absolute tolerance,
    held on average over the batch: another batch moves an image's bits by about as much.
    Sources: Song et al. 2021, section 4.3 and appendix D.2; Ho et al. 2019 (dequantisation).

    Raises UserError if the model's answers are not finite, or the solver gives up.
    """
    import numpy as np
    from scipy.integrate import solve_ivp

    scheduler, shape, count = denoiser.scheduler, images.shape, 0
    start, last = ends[0], scheduler.log_snr(torch.ones((), dtype=torch.float64)).item()
    stop = max(ends[1], last)
    levels = torch.tensor([start, stop], dtype=torch.float64)
    x = images + (offsets - 0.5) / LEVELS_PER_UNIT

    def drift(u: float, state: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        z = torch.from_numpy(state[: images.numel()]).to(images.dtype).to(images.device).reshape(shape)
        t = scheduler.time(torch.tensor(-2 * u, dtype=torch.float64)).clamp(max=1.0)
        size = scheduler.alpha(t).square() + scheduler.sigma(t).square()
        ratio = math.exp(2 * u)
        with torch.enable_grad():
            z.requires_grad_()
            velocity = z / (1 + ratio) - denoiser(scale(size.sqrt(), z) * z, t, cond) / math.sqrt(1 + ratio)
            (pulled,) = torch.autograd.grad(velocity, z, probes)
        if on_time is not None:
            on_time((u + start / 2) / (start / 2 - stop / 2))
        divergence = (pulled * probes).flatten(1).sum(1)
        # The solver would shorten its step for ever.
        if not (torch.isfinite(velocity).all() and torch.isfinite(divergence).all()):
            raise UserError(f"the model's answer is not finite at log-SNR {-2 * u:.3g}: it has diverged")
        return torch.cat([velocity.detach().flatten(), divergence]).cpu().double().numpy()

    begin = scale(1 / (1 + torch.exp(-levels[0])).sqrt(), x) * x
    state = torch.cat([begin.flatten(), begin.new_zeros(len(begin))]).cpu().double().numpy()
    span = (-start / 2, -stop / 2)
    done = solve_ivp(drift, span, state, rtol=tolerance, atol=tolerance, t_eval=span[1:])
    if not done.success:
        raise UserError(f"the flow could not be followed: {done.message}; try a larger tolerance=")
    final = torch.from_numpy(done.y[:, -1])
    z, divergence = final[: images.numel()].reshape(shape).flatten(1), final[images.numel() :]
    deviation = torch.sigmoid(-levels[1]).sqrt()
    dims = z.shape[1]
    log_p = -(z / deviation).square().sum(1) / 2 - dims * (math.log(2 * math.pi) / 2 + torch.log(deviation))
    # log p of x at the start: z is x scaled by (1 + e^2u)^-1/2.
    log_p = log_p + divergence - dims * torch.log1p(torch.exp(-levels[0])) / 2
    return -log_p / (dims * math.log(2)) + math.log2(LEVELS_PER_UNIT), count
