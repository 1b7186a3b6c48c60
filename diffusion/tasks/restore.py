"""Images from linear measurements, y = A x + noise: draws from the posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.denoiser import Cond
from diffusion.generative import GenerativeModel
from diffusion.guidance import Measured
from diffusion.operators import Operator
from diffusion.samplers import OnStep

FLOOR = 1 / 127.5 / math.sqrt(12)
"""What is left of a measurement's noise where none is added: the rounding of 8-bit images, on the scale [-1, 1]."""


@torch.no_grad()
def restore(
    generative: GenerativeModel,
    operator: Operator,
    measured: Tensor,
    noise: float,
    shape: Sequence[int],
    cond: Cond | None = None,
    *,
    seeds: Sequence[int],
    iterations: int = 3,
    on_step: OnStep | None = None,
) -> Tensor:
    """One draw (B, *shape) for each measurement (B, ...), from p(x | y) as far as `Measured` has it.

    noise: standard deviation of the measurements, on the scale [-1, 1] of the images, with all that the codec loses.
    In latents the operator sees what is decoded. Draw i depends on seeds[i], its condition and measurement alone.
    """
    y = measured.to(generative.to_device())
    guided = Measured(
        generative.denoiser, lambda latents: operator(generative.codec.decode(latents)), y, noise, iterations
    )
    return replace(generative, denoiser=guided).sample(shape, cond, seeds=seeds, on_step=on_step)


@torch.no_grad()
def assumed_noise(
    generative: GenerativeModel, operator: Operator, images: Tensor, noise: float, batch_size: int
) -> float:
    """The standard deviation to reckon with: of the noise, the rounding, and what the codec loses of A x.

    The last is the root mean square of A x - A decode(encode(x)) over images (N, C, *S); 0 in pixels. The three are
    independent, so that their squares add up.
    """
    lost = [
        (operator(part) - operator(generative.decode(generative.encode(part)).to(part))).square().flatten(1).mean(1)
        for part in images.split(batch_size)
    ]
    return math.sqrt(noise**2 + FLOOR**2 + float(torch.cat(lost).mean()))


def residual(operator: Operator, images: Tensor, measured: Tensor) -> Tensor:
    """How far images (N, C, *S) are from what was measured: the root mean square of A x - y, (N,)."""
    return (operator(images) - measured).double().square().flatten(1).mean(1).sqrt()
