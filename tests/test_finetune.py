"""Fine-tuning: what is taken over, what is frozen to the bit, and how fast each layer learns."""

from functools import partial

import pytest
import torch

from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.finetune import begin, choose, layered, layers
from diffusion.networks import UNet
from diffusion.networks.lora import add_updates
from diffusion.parameterizations import EDM
from diffusion.schedulers import Cosine
from tests.analytic import randomise

OPTIONS = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_size": 0}
THEN, NOW = ("cat", "dog"), ("dog", "owl", "cat")


def denoiser(classes: int | None, lora: int | None = None) -> NetworkDenoiser:
    network = randomise(UNet(1, 1, (8, 8), classes=classes, **OPTIONS))
    if lora:
        add_updates(network, lora)
    return NetworkDenoiser(Cosine(), EDM(sd=0.5), network)


def answer(model: NetworkDenoiser, label: int | None) -> torch.Tensor:
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return model(x, torch.tensor(0.5, dtype=torch.float64), None if label is None else {"label": torch.tensor([label])})


def learn(model: NetworkDenoiser, decay: float = 1.0, lr: float = 1e-2) -> None:
    """Three steps with weight decay, on all classes."""
    optimizer = layered(partial(torch.optim.AdamW, lr=lr, weight_decay=0.1), model, decay, token_lr=0.1)(())
    for label in (0, 1, 2):
        optimizer.zero_grad()
        answer(model, label).square().mean().backward()
        optimizer.step()


def test_classes_keep_their_tokens_by_name():
    old, new = denoiser(2), denoiser(3)
    assert begin(new, old.state_dict(), THEN, NOW) == [1]
    for name in THEN:
        assert torch.equal(answer(new, NOW.index(name)), answer(old, THEN.index(name)))
    assert torch.equal(answer(new, None), answer(old, None))
    assert not torch.equal(answer(new, 1), answer(old, 1))


def test_a_model_without_classes_answers_as_it_did_whatever_it_is_told_now():
    old, new = denoiser(None), denoiser(3)
    assert begin(new, old.state_dict(), (), NOW) == [0, 1, 2]
    assert all(torch.equal(answer(new, label), answer(old, None)) for label in (0, 1, 2, None))


def test_another_network_is_refused():
    other = NetworkDenoiser(Cosine(), EDM(sd=0.5), UNet(3, 3, (8, 8), **OPTIONS))
    with pytest.raises(UserError, match="does not fit"):
        begin(other, denoiser(None).state_dict(), (), ())


def kept(model: NetworkDenoiser, before: dict) -> set[str]:
    return {name for name, p in model.named_parameters() if torch.equal(p, before[name])}


@pytest.mark.parametrize("unfreeze", ["token", "last:2", "*.conv1.*", "all"])
def test_what_is_frozen_stays_to_the_bit(unfreeze):
    model = denoiser(3)
    begin(model, denoiser(2).state_dict(), THEN, NOW)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    choose(model, unfreeze, [1], updates=False)
    learn(model)
    moved = before.keys() - kept(model, before)
    label = "network.embedding.label.weight"
    learns = {
        "token": set(),
        "last:2": {name for name in before if name.startswith(("network.norm", "network.output"))},
        "*.conv1.*": {name for name in before if ".conv1." in name},
        "all": set(before),
    }[unfreeze]
    assert moved == learns | {label}
    if unfreeze != "all":
        columns = model.network.embedding.label.weight.ne(before[label]).any(0)
        assert columns.tolist() == [False, True, False, False]


def test_with_updates_these_alone_learn_and_begin_from_the_run():
    old, model = denoiser(3), denoiser(3, lora=2)
    begin(model, old.state_dict(), NOW, NOW)
    torch.testing.assert_close(answer(model, 1), answer(old, 1), rtol=0, atol=1e-6)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    choose(model, None, [], updates=True)
    learn(model)
    moved = before.keys() - kept(model, before)
    assert moved and all(".parametrizations.weight.0." in name for name in moved)


def test_layers_from_the_input_to_the_output():
    network = denoiser(3).network
    found = layers(network)
    assert found[:2] == [network.embedding, network.input] and found[-2:] == [network.norm, network.output]
    assert found.index(network.down[0]) < found.index(network.middle[0]) < found.index(network.up[0])
    assert sum(p.numel() for layer in found for p in layer.parameters()) == sum(p.numel() for p in network.parameters())


def test_each_layer_learns_slower_than_the_one_behind_it():
    model = denoiser(3)
    choose(model, "all", [], updates=False)
    optimizer = layered(partial(torch.optim.SGD, lr=1.0), model, 0.5, token_lr=0.1)(())
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for place, layer in enumerate(reversed(layers(model.network))):
        assert {rates[id(p)] for p in layer.parameters()} == {0.5**place}


def test_a_new_token_learns_at_its_own_rate_and_does_not_decay():
    model = denoiser(3)
    choose(model, "last:1", [1], updates=False)
    optimizer = layered(partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1), model, 0.5, token_lr=0.25)(())
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(model.network.embedding.label.weight)] == (0.25, 0.0)
    assert rates[id(model.network.output.weight)] == (1e-3, 0.1)


@pytest.mark.parametrize("unfreeze", ["last:0", "last:99", "last:x", "nothing.*", "Token"])
def test_refusals(unfreeze):
    with pytest.raises(UserError, match=r"finetune\.unfreeze"):
        choose(denoiser(2), unfreeze, [], updates=False)


@pytest.mark.parametrize("decay", [0, 1.5, "half"])
def test_rates_out_of_range_are_refused(decay):
    with pytest.raises(UserError, match="lr_decay"):
        layered(torch.optim.SGD, denoiser(2), decay, token_lr=0.1)
