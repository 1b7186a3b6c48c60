"""The losses of a discriminator and of what it judges."""

from __future__ import annotations

import torch
from torch import Tensor


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """mean max(0, 1 - real) + mean max(0, 1 + fake), () float32 (Lim and Ye 2017, eq. 4; Miyato et al. 2018, eq. 16).

    The means are over all logits, of any shape.
    """
    return (1 - real_logits.float()).relu().mean() + (1 + fake_logits.float()).relu().mean()


def hinge_generator(fake_logits: Tensor) -> Tensor:
    """-mean fake, () float32 (Miyato et al. 2018, eq. 17), over logits of any shape."""
    return -fake_logits.float().mean()


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor) -> Tensor:
    """|grad reconstruction_loss| / (|grad adversarial_loss| + 1e-6) in [0, 1e4], () detached.

    The gradients are those by `last_layer`, the weight of the decoder's last layer, so that both losses pull at it
    equally (Esser et al. 2021, eq. 7). Both graphs stay for the backward pass.
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    return (of_reconstruction.norm() / (of_adversarial.norm() + 1e-6)).clamp(0.0, 1e4).detach()
