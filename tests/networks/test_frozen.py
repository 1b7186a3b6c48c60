from copy import deepcopy

import pytest
import torch
from torch import nn

from diffusion.networks import Frozen


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(2, 2)
        self.borrowed = Frozen(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)))


@pytest.fixture
def owner() -> Owner:
    return Owner().train()


def test_it_is_no_part_of_its_owner(owner):
    names = {"own.weight", "own.bias"}
    assert set(owner.state_dict()) == {name for name, _ in owner.named_parameters()} == names
    assert not list(owner.buffers()) and owner.borrowed.network not in set(owner.modules())
    assert owner.load_state_dict(Owner().state_dict(), strict=True)


def test_it_stays_in_evaluation_mode_without_gradients(owner):
    owner.train().requires_grad_(True)
    network = owner.borrowed.network
    assert not any(part.training for part in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    x = torch.randn(4, 2)
    assert torch.equal(owner.borrowed(x), owner.borrowed(x)) and torch.equal(owner.borrowed(x), network(x))
    assert network[1].num_batches_tracked == 0


def test_gradients_pass_through_it(owner):
    owner.borrowed(owner.own(torch.randn(4, 2))).sum().backward()
    assert owner.own.weight.grad.abs().sum() > 0


def test_it_goes_where_its_owner_goes(owner):
    network = owner.borrowed.network
    owner.double()
    assert network[0].weight.dtype is torch.float64 and network[1].running_mean.dtype is torch.float64
    owner.to("meta")
    assert network[0].weight.device.type == network[1].running_mean.device.type == "meta"


def test_a_copy_has_a_network_of_its_own(owner):
    copy = deepcopy(owner)
    theirs, ours = copy.borrowed.network, owner.borrowed.network
    assert theirs is not ours and torch.equal(theirs[0].weight, ours[0].weight)
    copy.double()
    assert theirs[0].weight.dtype is torch.float64 and ours[0].weight.dtype is torch.float32


def test_it_can_be_held_twice(owner):
    owner.again = Frozen(owner.borrowed.network)
    owner.double()
    assert owner.again(torch.randn(4, 2).double()).dtype is torch.float64
