"""The hinge losses by hand, and the adaptive weight where the gradients are known."""

import pytest
import torch

from diffusion.objectives import adaptive_weight, hinge_discriminator, hinge_generator


def test_hinge_losses():
    """Logits beyond the margin cost nothing; inside it, their distance from it."""
    real = torch.tensor([[2.0, 1.0], [0.5, -1.0]], requires_grad=True)  # 0, 0, 0.5, 2
    fake = torch.tensor([-3.0, -0.5, 1.0], requires_grad=True)  # 0, 0.5, 2
    loss = hinge_discriminator(real, fake)
    assert loss.item() == pytest.approx(2.5 / 4 + 2.5 / 3)
    loss.backward()
    torch.testing.assert_close(real.grad, torch.tensor([[0.0, 0.0], [-0.25, -0.25]]))
    torch.testing.assert_close(fake.grad, torch.tensor([0.0, 1 / 3, 1 / 3]))
    assert hinge_generator(fake).item() == pytest.approx(2.5 / 3)


def test_losses_of_bfloat16_logits_are_float32():
    """257 logits: their mean is not a bfloat16 number."""
    logits = torch.cat([torch.ones(1), torch.zeros(256)]).bfloat16()
    assert torch.equal(hinge_generator(logits), torch.tensor(-1 / 257))
    assert hinge_discriminator(logits, logits).dtype == torch.float32


def losses(layer: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear in the layer: the gradients are (3, 4) and scale * (5, 12), of length 5 and 13 * scale."""
    return layer @ torch.tensor([3.0, 4.0]), scale * layer @ torch.tensor([5.0, 12.0])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1.0, 5 / (13 + 1e-6)), (-0.01, 5 / (0.13 + 1e-6)), (1e-7, 5 / (1.3e-6 + 1e-6)), (0.0, 1e4)],
)
def test_adaptive_weight(scale: float, expected: float):
    """The ratio of lengths, held at 1e4."""
    layer = torch.tensor([0.7, -2.0], requires_grad=True)
    weight = adaptive_weight(*losses(layer, scale), layer)
    assert weight.shape == () and not weight.requires_grad and layer.grad is None
    assert weight.item() == pytest.approx(min(expected, 1e4), rel=1e-4)


def test_a_weighted_loss_pulls_as_hard_as_the_reconstruction():
    layer = torch.tensor([0.7, -2.0], requires_grad=True)
    reconstruction, adversarial = losses(layer, 0.3)
    weight = adaptive_weight(reconstruction, adversarial, layer)
    (gradient,) = torch.autograd.grad(weight * adversarial, layer, retain_graph=True)
    assert gradient.norm().item() == pytest.approx(5.0, rel=1e-4)
    (reconstruction + weight * adversarial).backward()
    torch.testing.assert_close(layer.grad, torch.tensor([3.0, 4.0]) + weight * 0.3 * torch.tensor([5.0, 12.0]))
