"""The patch discriminator: shapes, what each logit sees, and images too small for it."""

import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import PatchDiscriminator


def make(size=(28, 28), in_channels=1, **options) -> PatchDiscriminator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PatchDiscriminator(in_channels, size, **{"channels": 8} | options)


def image(size=(28, 28), channels=1, count=2) -> torch.Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("size", "layers", "patches"),
    [
        ((8, 8), 2, (1, 1)),
        ((28, 28), 2, (6, 6)),
        ((28, 28), 3, (2, 2)),
        ((4, 9), 1, (1, 3)),
        ((8, 12, 17), 2, (1, 2, 3)),
    ],
)
def test_shapes(size: tuple[int, ...], layers: int, patches: tuple[int, ...], channels: int):
    logits = make(size, channels, layers=layers)(image(size, channels))
    assert logits.shape == (2, 1, *patches) and logits.isfinite().all() and logits.std() > 1e-4


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_logit_convolves_a_patch_of_the_stated_size(layers: int):
    """Group norm looks further, at the whole image; without it a logit depends on its patch alone."""
    net = make((64, 64), layers=layers)
    net.layers = torch.nn.Sequential(*(part for part in net.layers if not isinstance(part, torch.nn.GroupNorm)))
    images = image((64, 64), count=1).requires_grad_()
    logits = net(images)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    for axis in (0, 1):
        seen = images.grad[0, 0].abs().amax(axis).nonzero().flatten()
        assert seen[-1] - seen[0] + 1 == len(seen) == 6 * 2**layers - 2


@pytest.mark.parametrize("size", [(8, 7), (7, 8), (4, 16, 16)])
def test_images_too_small_are_refused(size: tuple[int, ...]):
    with pytest.raises(UserError, match=r"discriminator\.layers=2.*8 or more") as caught:
        make(size)
    assert "x".join(map(str, size)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"channels": 0}, {"layers": 0}])
def test_values_out_of_range_are_refused(options: dict):
    (name,) = options
    with pytest.raises(UserError, match=f"discriminator.{name}=0"):
        make(**options)


def test_images_of_a_batch_are_independent():
    net, images = make().train(), image()
    torch.testing.assert_close(net(images), torch.cat([net(images[:1]), net(images[1:])]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(28, 28), (8, 8, 12)])
def test_every_parameter_learns_and_is_all_there_is(size: tuple[int, ...]):
    net = make(size, 3)
    net(image(size, 3)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
