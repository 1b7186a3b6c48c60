"""ControlNet and Concatenated: the trunk's answer until trained, its weights for ever, and controls of any size."""

from functools import partial

import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import Concatenated, ControlNet, UNet
from diffusion.networks.concatenated import Fold
from tests.analytic import randomise

OPTIONS = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_size": 4, "head_channels": 8}
trunk = partial(UNet, **OPTIONS)


def steered(size, control=2, fold=1, patch=1) -> tuple[UNet, ControlNet]:
    """A U-Net with random weights, and the ControlNet that begins from it."""
    made = {"in_channels": 3, "out_channels": 3, "size": size, "classes": 4, "patch": patch}
    base = randomise(trunk(**made)).eval()
    network = ControlNet(trunk, control=(control, *(fold * side for side in size)), **made)
    network.begin(base.state_dict())
    return base, network


def given(size, n=2, control=2, fold=1):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, *size, generator=g)
    cond = {"label": torch.arange(n), "control": torch.randn(n, control, *(fold * side for side in size), generator=g)}
    return x, torch.tensor([0.3] * n), cond


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("fold", [1, 2], ids=["pixels", "latents"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (4, 4, 6)], ids=str)
def test_untrained_it_answers_as_the_base_to_the_bit(size, fold, patch):
    size = tuple(patch * side for side in size)
    base, network = steered(size, fold=fold, patch=patch)
    x, noise, cond = given(size, fold=fold)
    assert torch.equal(network.train()(x, noise, cond), base(x, noise, {"label": cond["label"]}))


@pytest.mark.parametrize("patch", [1, 2])
def test_training_steers_and_leaves_the_trunk_as_it_was(patch):
    base, network = steered((8, 8), patch=patch)
    x, noise, cond = given((8, 8))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        network.train()(x, noise, cond).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, network.trunk.state_dict()[name]) for name, value in base.state_dict().items())
    plain = base(x, noise, cond)
    moved = network(x, noise, cond) - plain
    assert moved.abs().max() > 1e-3
    assert torch.equal(network(x, noise, cond | {"scale": torch.zeros(2)}), plain)
    other = network(x, noise, cond | {"control": -cond["control"]}) - plain
    assert (other - moved).abs().max() > 1e-4
    one = network(x, noise, cond | {"scale": torch.tensor([1.0, 0.0])})
    torch.testing.assert_close(one[0], network(x, noise, cond)[0])
    torch.testing.assert_close(one[1], plain[1])


def test_concatenated_hears_the_control_of_each_sample_also_where_its_class_is_dropped():
    network = randomise(Concatenated(trunk, control=(2, 16, 16), in_channels=3, out_channels=3, size=(8, 8)))
    x, noise, cond = given((8, 8), fold=2)
    answer = network(x, noise, cond)
    changed = cond | {"control": torch.stack([cond["control"][0], cond["control"][0]])}
    assert torch.equal(network(x, noise, changed)[0], answer[0])
    assert not torch.equal(network(x, noise, changed)[1], answer[1])
    dropped = [network(x, noise, each | {"drop": torch.tensor([True, True])}) for each in (cond, changed)]
    assert torch.equal(dropped[0][0], dropped[1][0]) and not torch.equal(dropped[0][1], dropped[1][1])


@pytest.mark.parametrize("size", [(3, 5), (2, 3, 4)], ids=str)
def test_folding_keeps_every_value_at_its_place(size):
    fold = Fold((2, *(2 * side for side in size)), size)
    values = torch.arange(fold.channels * torch.Size(size).numel()).reshape(2, *(2 * side for side in size))[None]
    folded = fold(values)
    assert folded.shape == (1, fold.channels, *size)
    blocks = values[(slice(None), slice(None), *(slice(0, 2),) * len(size))]
    assert set(folded[(0, slice(None), *(0,) * len(size))].tolist()) == set(blocks.flatten().tolist())


def test_refusals():
    made = {"in_channels": 3, "out_channels": 3, "size": (8, 8), "classes": None}
    with pytest.raises(UserError, match=r"network\.base"):
        ControlNet(None, control=(1, 8, 8), **made)
    with pytest.raises(UserError, match="needs a control"):
        ControlNet(trunk, **made)
    with pytest.raises(UserError, match="multiple"):
        Concatenated(trunk, control=(1, 12, 8), **made)
    network = ControlNet(trunk, control=(1, 8, 8), **made)
    with pytest.raises(UserError, match="is given none"):
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1), {"label": torch.zeros(1)})
