"""How well a denoiser knows an image: better, if it has memorised it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.codecs import Codec
from diffusion.denoiser import Denoiser, scale
from diffusion.generative import evaluating
from diffusion.random import generator

LEVELS = 8
LOG_SNR = (-4.0, 8.0)
"""From noise that hides the image to noise of about two grey levels: where the objectives train."""


@torch.no_grad()
def membership_scores(
    denoiser: Denoiser,
    codec: Codec,
    images: Tensor,
    labels: Tensor | None,
    seed: int,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """-mean over noise levels of log |D(x_t) - x0|^2 of images uint8 (N, C, *S): (N,) float64, high where memorised.

    x0 is codec.encode(image), and x_t = alpha x0 + sigma noise at `LEVELS` values of the log-SNR, at equal distance
    over `LOG_SNR`, as far as the scheduler goes. The logarithm gives each level the same say. Noise i depends on
    (seed, i) alone; labels are the denoiser's condition, (N,) or (N, K), or None. It is the loss attack of Yeom et al.
    2018, by the denoising loss as in Matsumoto et al. 2023 (Membership Inference Attacks against Diffusion Models).

    On the device of the denoiser; `on_batch` is told after each batch how many images are done.
    """
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    scheduler, found, done = denoiser.scheduler, [], 0
    lowest = scheduler.log_snr(torch.ones((), dtype=torch.float64)).item()
    levels = torch.linspace(max(LOG_SNR[0], lowest), LOG_SNR[1], LEVELS, dtype=torch.float64)
    times = scheduler.time(levels).clamp(max=1.0)
    with evaluating(denoiser), evaluating(codec):
        for batch in images.split(batch_size):
            places = range(done, done + len(batch))
            x0 = codec.encode(batch.to(device).float() / 127.5 - 1)
            noise = torch.stack([_noise(seed, place, x0.shape[1:]) for place in places])
            cond = None if labels is None else {"label": _condition(labels[places.start : places.stop]).to(device)}
            total = torch.zeros(len(batch), dtype=torch.float64)
            for level, t in enumerate(times):
                eps = noise[:, level].to(device)
                x_t = scale(scheduler.alpha(t), x0) * x0 + scale(scheduler.sigma(t), x0) * eps
                error = (denoiser(x_t, t, cond) - x0).square().flatten(1).mean(1)
                total -= error.double().cpu().clamp(min=torch.finfo(torch.float32).tiny).log()
            found.append(total / LEVELS)
            done += len(batch)
            if on_batch is not None:
                on_batch(done)
    return torch.cat(found)


def _noise(seed: int, place: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(LEVELS, *shape, generator=generator("membership", seed, place))


def _condition(labels: Tensor) -> Tensor:
    return labels.float() if labels.ndim == 2 else labels
