"""The classifier: shapes of every kind, how its parts fit together, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

from diffusion.errors import UserError
from diffusion.networks import Classifier
from tests.analytic import randomise


def make(in_channels=1, spatial_dims=2, classes=3, silent=False, **options) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Classifier(in_channels, spatial_dims, classes, **{"channels": 8} | options)
    return net if silent else randomise(net)


def image(size=(8, 8), channels=1, count=2) -> torch.Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((8, 8), [(8, 8), (4, 4), (2, 2)]),
        ((28, 28), [(28, 28), (14, 14), (7, 7)]),
        ((7, 5), [(7, 5), (4, 3), (2, 2)]),
        ((1, 1), [(1, 1)] * 3),
        ((8, 6, 3), [(8, 6, 3), (4, 3, 2), (2, 2, 1)]),
    ],
)
def test_shapes(size: tuple[int, ...], sizes: list[tuple[int, ...]], channels: int):
    net, images = make(channels, len(size)), image(size, channels)
    maps = net.features(images)
    assert [tuple(found.shape) for found in maps] == [
        (2, width, *s) for width, s in zip((8, 16, 32), sizes, strict=True)
    ]
    assert net.embed(images).shape == (2, 32)
    logits = net(images)
    assert logits.shape == (2, 3) and logits.isfinite().all() and logits.std() > 1e-4


def test_the_parts_make_the_whole():
    net, images = make(), image()
    last = net.features(images)[-1]
    embedded = F.silu(net.norm(last)).mean((2, 3))
    torch.testing.assert_close(net.embed(images), embedded)
    torch.testing.assert_close(net(images), embedded @ net.output.weight.T + net.output.bias)


def test_images_of_a_batch_are_independent():
    net, images = make().train(), image()
    torch.testing.assert_close(net(images), torch.cat([net(images[:1]), net(images[1:])]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"channels": 0}, {"blocks": 0}, {"classes": 0}, {"multipliers": ()}, {"multipliers": (2, 0)}]
)
def test_values_out_of_range_are_refused(options: dict):
    (name,) = options
    with pytest.raises(UserError, match=f"classifier.{name}="):
        make(**options)


@pytest.mark.parametrize("size", [(8, 8), (4, 6, 5)])
def test_every_parameter_learns_and_is_all_there_is(size: tuple[int, ...]):
    net = make(spatial_dims=len(size))
    F.cross_entropy(net(image(size, count=3)), torch.tensor([0, 1, 2])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


def test_a_few_images_are_learned_by_heart():
    net, images, labels = make(silent=True), image(count=6), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(net(images).argmax(1), labels)
