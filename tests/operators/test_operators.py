"""Every operator under conf/operator: linear, with a true adjoint, in two and three dimensions."""

import pytest
import torch
from hydra.utils import instantiate

from diffusion.apps.config import CONF, choice_of
from diffusion.errors import UserError
from diffusion.operators import Blur, Colour, Fourier, Inpainting, SuperResolution, unknown
from diffusion.random import generator

OPERATORS = {path.stem: instantiate(choice_of("operator", path.stem)) for path in (CONF / "operator").glob("*.yaml")}
SHAPES = [(3, 8, 12), (2, 6, 9, 5)]
every_operator = pytest.mark.parametrize("name", OPERATORS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2-D", "3-D"])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@every_operator
@every_shape
def test_it_is_linear_and_its_adjoint_is_true(name, shape):
    """<A x, y> = <x, A^T y>, for each sample by itself."""
    operator, x = OPERATORS[name], normal(3, *shape)
    operator.check(shape)
    seen = operator(x)
    torch.testing.assert_close(operator(2 * x[:1] - x[1:2]), 2 * seen[:1] - seen[1:2])
    y = normal(*seen.shape, seed=1)
    pulled = operator.adjoint(y, shape)
    torch.testing.assert_close((seen * y).flatten(1).sum(1), (x * pulled).flatten(1).sum(1))


@every_operator
@every_shape
def test_its_pictures_are_images(name, shape):
    operator = OPERATORS[name]
    y = operator(normal(2, *shape))
    found = [operator.picture(y, shape), *operator.interpolated(y, shape).values()]
    assert all(image.shape == (2, *shape) and image.isfinite().all() for image in found)


def test_super_resolution_takes_means_of_blocks_and_of_what_the_edge_leaves():
    image = torch.arange(30.0, dtype=torch.float64).reshape(1, 1, 5, 6)
    found = SuperResolution(4)(image)[0, 0]
    blocks = [[image[0, 0, r, c].mean() for c in (slice(0, 4), slice(4, 6))] for r in (slice(0, 4), slice(4, 5))]
    torch.testing.assert_close(found, torch.tensor(blocks))


def test_a_blur_keeps_what_is_flat_and_widens_a_point_by_its_width():
    assert torch.allclose(Blur(2.0)(torch.full((1, 1, 9, 9), 0.7)), torch.tensor(0.7))
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    spread = Blur(2.0)(point)[0, 0].sum(0)
    places = torch.arange(41, dtype=torch.float64) - 20
    assert spread.sum().item() == pytest.approx(1, abs=1e-6)
    assert (spread @ places**2).item() == pytest.approx(4, rel=1e-3)


def test_fourier_keeps_the_lowest_lines_and_the_share_asked_for():
    operator = Fourier(acceleration=4.0, center=0.1)
    lines = operator.lines(40).tolist()
    assert len(lines) == 10 and {0, 1, 39}.issubset(lines) and lines == sorted(set(lines))
    x = normal(1, 1, 40, 7)
    kept = torch.fft.fftn(x, dim=(2, 3), norm="ortho")[:, :, lines]
    torch.testing.assert_close(torch.view_as_complex(operator(x).movedim(2, -1).contiguous()), kept)


def test_all_that_inpainting_measures_is_in_its_picture():
    operator, x = Inpainting("center", None), normal(1, 2, 8, 8)
    hidden = unknown("center", (8, 8))
    torch.testing.assert_close(operator.picture(operator(x), x.shape[1:]), torch.where(hidden, 0.0, x))


@pytest.mark.parametrize(
    ("name", "size", "share", "count"),
    [
        ("center", (8, 8), None, 16),
        ("center", (8, 8, 8), 0.125, 64),
        ("center", (28, 20), 0.25, 140),
        ("half", (6, 9), None, 24),
        ("half", (4, 10), 0.3, 12),
        ("random", (10, 10), 0.37, 37),
        ("random", (2, 2), 0.01, 1),
    ],
)
def test_a_mask_hides_the_share_asked_for(name, size, share, count):
    assert unknown(name, size, share, generator(0)).sum() == count


def test_a_random_mask_is_that_of_its_seed():
    a, b, c = (unknown("random", (9, 9), 0.5, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SuperResolution(1), "factor=1"),
        (lambda: SuperResolution(2.5), "factor=2.5"),
        (lambda: SuperResolution(9).check((1, 8, 8)), "side of 8"),
        (lambda: Blur(0), "width=0"),
        (lambda: Fourier(1.0), "acceleration=1"),
        (lambda: Fourier(center=1.5), "center=1.5"),
        (lambda: Colour().check((1, 8, 8)), "one channel"),
        (lambda: Inpainting("middle"), "mask=middle"),
        (lambda: Inpainting("random", 1.0), "share=1"),
    ],
)
def test_a_mistake_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()
