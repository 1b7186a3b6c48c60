"""Low-rank updates: nothing changes at first, merging changes nothing, and only the updates learn."""

import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import UNet
from diffusion.networks.lora import add_updates, merge_updates, plain_name
from tests.analytic import randomise

OPTIONS = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_size": 8, "head_channels": 8}


def network(size) -> UNet:
    return randomise(UNet(2, 2, size, classes=3, **OPTIONS)).eval()


def given(size):
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, *size, generator=g), torch.tensor([0.1, 0.5, 0.9]), {"label": torch.arange(3)}


@pytest.mark.parametrize("size", [(8, 8), (4, 4, 4)], ids=str)
def test_merged_equals_unmerged(size):
    net, (x, noise, cond) = network(size), given(size)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    answer = net(x, noise, cond)
    add_updates(net, 2)
    torch.testing.assert_close(net(x, noise, cond), answer, rtol=0, atol=1e-6)  # up is 0
    learning = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        net(x, noise, cond).square().mean().backward()
        optimizer.step()
    frozen = {plain_name(name): p for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen.keys() == before.keys() - {name for name in before if name.endswith("frequencies")}
    assert all(torch.equal(p, before[name]) for name, p in frozen.items())
    unmerged = net(x, noise, cond)
    assert (unmerged - answer).abs().max() > 1e-3
    merge_updates(net)
    torch.testing.assert_close(net(x, noise, cond), unmerged, rtol=0, atol=1e-6)
    assert net.state_dict().keys() == before.keys()


def test_updates_are_of_the_rank_and_of_convolutions_and_attention():
    net = network((8, 8))
    add_updates(net, 2)
    names = {name.split(".parametrizations")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert any("attention.qkv" in name for name in names) and any("conv1" in name for name in names)
    assert not any("embedding" in name or "scale_shift" in name for name in names)
    layer = next(m for name, m in net.named_modules() if name.endswith("attention.qkv"))
    update = layer.parametrizations.weight[0]
    torch.nn.init.normal_(update.up)
    change = layer.weight - layer.parametrizations.weight.original
    assert torch.linalg.matrix_rank(change.double(), tol=1e-4) == 2


@pytest.mark.parametrize("rank", [0, -1, 1.5, 10_000])
def test_refusals(rank):
    with pytest.raises(UserError, match=r"finetune\.lora"):
        add_updates(network((8, 8)), rank)
