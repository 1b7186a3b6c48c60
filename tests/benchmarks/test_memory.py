import pytest
import torch
from torch import nn

from benchmarks.memory import WAYS, held, network_of, one_pass


class Sigmoids(nn.Module):
    """Twenty, one after another; each keeps its answer."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x, noise):
        x = x + self.shift
        for _ in range(20):
            x = x.sigmoid()
        return x


def test_what_is_held_is_what_the_layers_keep():
    """20 answers of 1 MiB; the images, their sum, the square and two gradients come on top."""
    network, shape = Sigmoids(), (4, 1, 256, 256)
    one_pass(network, shape)
    assert 20 * 2**20 <= held(network, shape) <= 26 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 32, 32), (4, 1, 16, 16, 16)])
def test_each_way_holds_less(shape):
    networks = {way: network_of("small", shape, **keys) for way, keys in WAYS.items()}
    for network in networks.values():
        one_pass(network, shape)
    found = {way: held(network, shape) for way, network in networks.items()}
    assert found["checkpointing"] < 0.6 * found["as it is"]
    assert found["patch=2"] < 0.4 * found["as it is"]
