"""The classifier that is told the noise level: shapes, what it depends on, and what it refuses."""

import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import NoisyClassifier
from tests.analytic import randomise


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (2, 5, 6, 7), (1, 1, 1)])
@pytest.mark.parametrize("attention", [True, False])
def test_any_image_has_a_logit_for_each_class(shape, attention):
    torch.manual_seed(0)
    network = NoisyClassifier(shape[0], shape[1:], classes=5, channels=8, attention=attention)
    logits = network(torch.randn(3, *shape), torch.tensor([-1.0, 0.0, 2.0]))
    assert logits.shape == (3, 5) and torch.isfinite(logits).all()


def test_it_listens_to_the_noise_level_and_every_part_gets_a_gradient():
    network = randomise(NoisyClassifier(1, (8, 8), classes=4, channels=8))
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = [network(x, torch.tensor([level])) for level in (-1.0, 1.0)]
    assert (answers[0] - answers[1]).abs().max() > 1e-3
    answers[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"channels": 0}, "model.network.channels=0"),
        ({"blocks": 0}, "model.network.blocks=0"),
        ({"multipliers": []}, r"model.network.multipliers=\[\]"),
        ({"dropout": 1.0}, "model.network.dropout=1.0"),
    ],
)
def test_values_out_of_range_are_refused(keys, said):
    with pytest.raises(UserError, match=said):
        NoisyClassifier(1, (8, 8), classes=2, **keys)
