"""The U-Net: shapes of every kind, its conditions, where it attends, and independent samples in a batch."""

import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import UNet
from diffusion.networks.layers import patches
from diffusion.networks.unet import Attention, pad_to_multiple
from tests.analytic import randomise

C_NOISE = torch.tensor([-0.3, 0.4])


def make(size=(8, 8), in_channels=1, out_channels=None, classes=None, silent=False, **options) -> UNet:
    """A small network in evaluation mode, without silent layers unless `silent`."""
    small = {
        "channels": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention_size": 4,
        "head_channels": 4,
    } | options
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(in_channels, out_channels or in_channels, size, classes, **small).eval()
    return net if silent else randomise(net)


def image(size=(8, 8), channels=1, count=2) -> torch.Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


def test_answers_zero_before_training():
    net = make(silent=True, classes=3)
    assert torch.equal(net(image(), C_NOISE, {"label": torch.tensor([0, 2])}), torch.zeros(2, 1, 8, 8))
    assert not make(silent=True, patch=2)(image(), C_NOISE).any()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(
    ("size", "multipliers"),
    [
        ((8, 8), (1, 2)),
        ((28, 28), (1, 2, 2)),
        ((7, 9), (1, 2, 2)),
        ((5, 16), (1, 1, 1)),
        ((4, 4), (1, 2, 2)),
        ((3, 3), (1,)),
        ((4, 6, 5), (1, 2)),
        ((7, 5, 9), (1, 1, 1)),
    ],
)
def test_shapes(size: tuple[int, ...], multipliers: tuple[int, ...], channels: int):
    """Two and three dimensions, odd sides, sides no power of two: out comes the shape that went in."""
    net = make(size, channels, multipliers=multipliers)
    answer = net(image(size, channels), C_NOISE)
    assert answer.shape == (2, channels, *size)
    assert answer.isfinite().all() and answer.std() > 1e-3


@pytest.mark.parametrize("patch", [2, 3])
@pytest.mark.parametrize("size", [(12, 12), (13, 17), (6, 7, 9)])
def test_shapes_in_patches(size: tuple[int, ...], patch: int):
    answer = make(size, 3, patch=patch)(image(size, 3), C_NOISE)
    assert answer.shape == (2, 3, *size)
    assert answer.isfinite().all() and answer.std() > 1e-3


@pytest.mark.parametrize("size", [(12, 8), (6, 6, 8)])
def test_a_layer_back_from_patches_is_the_transpose_of_the_one_to_them(size: tuple[int, ...]):
    """<A x, y> = <x, A^T y> for all x and y, with the same weights: each place is turned back where it came from."""
    to, back = patches(len(size), 3, 5, 2), patches(len(size), 5, 3, 2, back=True)
    for layer in (to, back):
        torch.nn.init.zeros_(layer.bias)
    back.weight.data = to.weight.data
    x, y = image(size, 3), image([side // 2 for side in size], 5)
    torch.testing.assert_close((to(x) * y).sum(), (x * back(y)).sum())


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_place_sees_its_patch_and_its_neighbours(patch: int):
    x = image((32, 32)).requires_grad_()
    patches(2, 1, 1, patch)(x)[0, 0, 3, 2].backward()
    rows, columns = x.grad[0, 0].nonzero().unbind(1)
    assert (rows.min(), rows.max() + 1) == (2 * patch, 5 * patch)
    assert (columns.min(), columns.max() + 1) == (patch, 4 * patch)


def test_other_channels_out_and_other_sizes():
    net = make((8, 8), in_channels=4, out_channels=2)
    assert net(image((12, 7), 4), C_NOISE).shape == (2, 2, 12, 7)


@pytest.mark.parametrize("channels", [4, 6, 10, 18, 20, 48])
def test_widths(channels: int):
    """Any width of a level finds a group norm that divides it."""
    net = make(channels=channels, attention_size=0)
    assert net(image(), C_NOISE).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(("size", "levels"), [((3, 8), 3), ((8, 7), 4), ((2, 8, 8), 3), ((1, 1), 2)])
def test_images_too_small_to_halve_are_refused(size: tuple[int, ...], levels: int):
    with pytest.raises(UserError, match="x".join(map(str, size))) as caught:
        UNet(1, 1, size, channels=8, multipliers=(1,) * levels)
    assert "\n" not in str(caught.value)


def test_patches_that_do_not_fit_are_refused():
    assert make((16, 16), multipliers=(1, 2, 2), patch=4)
    with pytest.raises(UserError, match=r"15x16 in patches of 4 cannot be halved 2 times.*smaller network\.patch"):
        make((15, 16), multipliers=(1, 2, 2), patch=4)
    with pytest.raises(UserError, match=r"network\.patch=0"):
        make(patch=0)


def test_head_channels_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="head_channels=12"):
        make(channels=40, head_channels=12)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (28, 28), (5, 1, 6)])
def test_cropping_undoes_padding(size: tuple[int, ...], factor: int):
    """The padded sides are the next multiples, and the padding repeats the edge."""
    x = image(size, 3)
    padded, crop = pad_to_multiple(x, factor)
    assert torch.equal(padded[crop], x)
    assert all(
        side % factor == 0 and side - original < factor for side, original in zip(padded.shape[2:], size, strict=True)
    )
    assert torch.equal(padded.flatten(2)[..., 0], x.flatten(2)[..., 0])
    assert torch.equal(padded.flatten(2)[..., -1], x.flatten(2)[..., -1])


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize(
    ("size", "attention_size", "sides"),
    [
        ((32, 32), 0, []),
        ((32, 32), 8, [8]),
        ((32, 32), 16, [8, 16]),
        ((32, 32), 15, [8]),
        ((28, 28), 7, [7]),
        ((28, 20), 14, [7, 14]),
        ((26, 26), 7, [7]),
        ((8, 8, 16), 4, [4]),
        ((8, 8), 8, [2, 4, 8]),
    ],
)
def test_attention_at_the_chosen_levels(size: tuple[int, ...], attention_size: int, sides: list[int], patch: int):
    """At each chosen level of three in every block (one down, two up), and once in a middle that attends."""
    lowest = max(side + -side % 4 for side in size) // 4
    size = tuple(patch * side for side in size)
    net = make(size, multipliers=(1, 1, 1), attention_size=attention_size, patch=patch)
    seen = []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda _, args: seen.append(max(args[0].shape[2:])))
    net(image(size), C_NOISE)
    assert sorted(seen) == sorted(sides * 3 + [lowest] * bool(sides))


def test_attention_is_scaled_dot_product_attention_over_all_positions():
    """Against softmax(q k^T / sqrt(d)) v written out, head by head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = randomise(Attention(8, 4))
    x = image((3, 5), 8)
    tokens = layer.norm(x).flatten(2).transpose(1, 2)
    q, k, v = layer.qkv(tokens).split(8, 2)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(q[..., head] @ k[..., head].transpose(1, 2) / 2, dim=2)
        heads.append(weights @ v[..., head])
    expected = x + layer.output(torch.cat(heads, 2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_noise_level_matters_and_each_sample_has_its_own():
    net, x = make(), image(count=1).expand(2, -1, -1, -1)
    answer = net(x, C_NOISE)
    assert (answer[0] - answer[1]).abs().max() > 1e-3
    torch.testing.assert_close(answer[:1], net(x[:1], C_NOISE[:1]), rtol=1e-5, atol=1e-5)


def test_labels():
    """Each class answers in its own way; a dropped label equals no label, whatever it was."""
    net, x = make(classes=3), image(count=1)
    each = [net(x, C_NOISE[:1], {"label": torch.tensor([label])}) for label in range(3)]
    none = net(x, C_NOISE[:1])
    for i, first in enumerate([*each, none]):
        for second in [*each, none][:i]:
            assert (first - second).abs().max() > 1e-3
    for label in range(3):
        cond = {"label": torch.tensor([label]), "drop": torch.tensor([True])}
        assert torch.equal(net(x, C_NOISE[:1], cond), none)
        assert torch.equal(net(x, C_NOISE[:1], cond | {"drop": torch.tensor([False])}), each[label])
    assert torch.equal(net(x, C_NOISE[:1], {}), none)


def test_labels_are_dropped_by_sample():
    net, x, label = make(classes=3), image(), torch.tensor([1, 1])
    mixed = net(x, C_NOISE, {"label": label, "drop": torch.tensor([True, False])})
    torch.testing.assert_close(mixed[:1], net(x, C_NOISE)[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1:], net(x, C_NOISE, {"label": label})[1:], rtol=1e-5, atol=1e-5)


def test_multi_hot_labels():
    """One-hot is the class; two at once are neither of them, and the labels' embeddings add."""
    net, x = make(classes=3), image()
    hot = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(net(x, C_NOISE, {"label": hot}), net(x, C_NOISE, {"label": torch.tensor([1, 2])}))
    both = net(x, C_NOISE, {"label": torch.tensor([[0.0, 1.0, 1.0]] * 2)})
    assert all((both - net(x, C_NOISE, {"label": torch.tensor([k, k])})).abs().max() > 1e-3 for k in (1, 2))
    dropped = net(x, C_NOISE, {"label": hot, "drop": torch.tensor([True, True])})
    assert torch.equal(dropped, net(x, C_NOISE))


def test_an_unconditional_network_ignores_labels():
    net, x = make(), image()
    assert torch.equal(net(x, C_NOISE, {"label": torch.tensor([0, 1])}), net(x, C_NOISE))


@pytest.mark.parametrize("size", [(8, 8), (4, 6, 5)])
def test_samples_of_a_batch_are_independent(size: tuple[int, ...]):
    """A batch of two answers as each alone, to 1e-5."""
    net, x, label = make(size, classes=3), image(size), torch.tensor([0, 2])
    alone = [net(x[i : i + 1], C_NOISE[i : i + 1], {"label": label[i : i + 1]}) for i in range(2)]
    torch.testing.assert_close(net(x, C_NOISE, {"label": label}), torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (4, 4, 4)])
def test_every_parameter_learns(size: tuple[int, ...], patch: int):
    """After the layers that start at zero have moved; all labels and the missing one are seen."""
    size = tuple(patch * side for side in size)
    net = make(size, classes=2, patch=patch).train()
    cond = {"label": torch.tensor([0, 1, 0]), "drop": torch.tensor([False, False, True])}
    net(image(size, count=3), torch.tensor([-0.3, 0.4, 0.1]), cond).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Every output of every layer; a bias as a whole, as a bias of keys moves no softmax.
        rows = parameter.grad.flatten(1) if parameter.ndim > 1 else parameter.grad[None]
        assert rows.any(1).all(), name


def test_dropout_acts_in_training_alone():
    net = make(dropout=0.5)
    x = image()
    assert torch.equal(net(x, C_NOISE), net(x, C_NOISE))
    net.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert (net(x, C_NOISE) - net(x, C_NOISE)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)], ids=["2-D", "3-D"])
def test_checkpointing_keeps_less_for_the_same_gradients(size: tuple[int, ...]):
    """To the bit, with what dropout drew; the bytes are those that autograd keeps, each block of memory once."""
    found = []
    for checkpointing in (False, True):
        net = make(size, dropout=0.3, checkpointing=checkpointing).train()
        kept = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = net(image(size), C_NOISE).square().sum()
        loss.backward()
        found.append(({name: p.grad for name, p in net.named_parameters()}, sum(kept.values())))
    (plain, much), (anew, little) = found
    assert all(torch.equal(anew[name], grad) for name, grad in plain.items())
    assert little < 0.7 * much


def test_state_holds_parameters_alone():
    net = make(classes=3)
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("patch", [1, 2])
def test_images_stay_in_the_weights_layout(size: tuple[int, ...], patch: int):
    """All that lies between the first and the last convolution is channels-last, and so are the gradients."""
    net, seen = make(size, in_channels=3, attention_size=8, patch=patch), []

    def look(module, args, answer):
        seen.extend(type(module).__name__ for x in (*args, answer) if x.ndim == 4 and not is_last(x))

    for module in net.modules():
        if module is not net.input and not list(module.children()):  # the input is given what comes
            module.register_forward_hook(look)
    answer = net(image(size, 3), C_NOISE)
    answer.square().mean().backward()
    assert seen == []
    weights = [p for p in net.parameters() if p.ndim == 4]
    assert len(weights) > 10 and all(is_last(p) and is_last(p.grad) for p in weights)


def is_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_another_layout_are_taken():
    """As a checkpoint from before the layout has them: the same values, in the network's own layout."""
    net, x = make(in_channels=3), image(channels=3)
    older = {name: value.clone(memory_format=torch.contiguous_format) for name, value in net.state_dict().items()}
    other = make(in_channels=3, silent=True)
    other.load_state_dict(older)
    assert torch.equal(other(x, C_NOISE), net(x, C_NOISE))
    assert all(is_last(p) for p in other.parameters() if p.ndim == 4)
