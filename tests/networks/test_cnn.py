"""The plain convolutional denoiser."""

import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import CNN


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (7, 9), (3, 5), (6, 7, 9)])
def test_it_answers_in_the_shape_of_the_image(size):
    x = torch.randn(2, 3, *size)
    for dense in (0, 16):
        assert CNN(3, 2, size, channels=8, blocks=1, dense=dense)(x, torch.zeros(2)).shape == (2, 2, *size)


def test_it_is_told_nothing():
    network, x = CNN(1, 1, (8, 8), classes=10, channels=8, blocks=1).eval(), torch.randn(2, 1, 8, 8)
    told = network(x, torch.tensor([0.3, -2.0]), {"label": torch.tensor([1, 2])})
    assert torch.equal(network(x, torch.zeros(2)), told)


def test_a_bounded_answer_is_twice_the_sigmoid_minus_one():
    torch.manual_seed(0)
    plain, x = CNN(1, 1, (8, 8), channels=8, blocks=1), 20 * torch.randn(2, 1, 8, 8)
    bounded = CNN(1, 1, (8, 8), channels=8, blocks=1, bounded=True)
    bounded.load_state_dict(plain.state_dict())
    torch.testing.assert_close(bounded(x, torch.zeros(2)), 2 * torch.sigmoid(plain(x, torch.zeros(2))) - 1)


@pytest.mark.parametrize("values", [{"channels": 0}, {"blocks": 0}, {"dense": -1}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(UserError, match=rf"network\.{next(iter(values))}"):
        CNN(1, 1, (8, 8), **values)
