import numpy as np
import pytest
import torch
from skimage.transform import rotate

from diffusion.metrics.corners import corners_of, filled


def bright(n: int, side: int = 32) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(120, 230, (n, 3, side, side), dtype=np.uint8))


def turned(images: torch.Tensor, value: float) -> torch.Tensor:
    """Turned by 20 degrees, what is not known filled with a value."""
    made = [rotate(i.movedim(0, -1).numpy(), 20, cval=value / 255, preserve_range=False) for i in images]
    return torch.from_numpy(np.stack(made) * 255).round().to(torch.uint8).movedim(-1, 1)


def shares(images: torch.Tensor) -> dict[str, tuple[float, bool]]:
    return {k: (float(f.images.mean()), f.ground) for k, f in filled(corners_of(images)).items()}


@pytest.mark.parametrize(("value", "color"), [(0, "black"), (255, "white")])
def test_corners_that_a_rotation_has_filled_are_found(value, color):
    images = bright(40)
    images[:10] = turned(images[:10], value)
    found = shares(images)
    assert found[color] == (0.25, False)
    assert found["white" if color == "black" else "black"][0] == 0


def test_borders_that_a_shift_has_filled_are_found():
    images = bright(20)
    images[3, :, :, :5] = 0
    found = filled(corners_of(images))["black"]
    assert not found.ground and np.flatnonzero(found.images).tolist() == [3]


def test_a_dark_ground_is_none():
    rng = np.random.default_rng(1)
    grid = np.mgrid[:32, :32]
    centres, widths = rng.uniform(10, 22, (60, 2)), rng.uniform(3, 9, 60)
    blobs = []
    for centre, width in zip(centres, widths, strict=True):
        distances = ((grid - centre[:, None, None]) ** 2).sum(0)
        blobs.append(255 * np.exp(-distances / (2 * width**2)))
    found = shares(torch.from_numpy(np.stack(blobs)[:, None]).round().to(torch.uint8))
    assert 0 < found["black"][0] <= 1 and found["black"][1]


def test_what_is_in_the_middle_too_is_no_filling():
    images = bright(30)
    images[:6, :, :4, :4] = 0
    images[:, :, 14:20, 12:20] = 0
    assert shares(images)["black"] == (pytest.approx(0.2), True)


def test_an_overexposed_background_is_none():
    images = bright(30)
    images[:10, :, :10], images[:10, :, 22:] = 255, 255
    assert shares(images)["white"] == (pytest.approx(1 / 3), True)


def test_sixteen_bits_and_volumes():
    images = bright(8)
    images[0, :, :, :5] = 0
    deep = (images.int() * 257 - 32768).to(torch.int16)
    assert shares(deep) == shares(images) == {"black": (0.125, False), "white": (0.0, False)}
    volumes = images[:, :1, None].expand(-1, -1, 5, -1, -1)
    assert shares(volumes) == shares(images)
    assert shares(images[:, :, :2, :2])["black"][0] > 0  # of less than a triangle


def test_real_pictures(shared_data):
    with np.load(shared_data("bccd_wbc28/bccd_wbc28.npz")) as arrays:
        share, ground = shares(torch.from_numpy(arrays["val_images"]).movedim(-1, 1))["black"]
        assert 0.2 < share < 0.4 and not ground
    for name in ("breastmnist", "adrenalmnist3d"):
        with np.load(shared_data(f"medmnist/{name}.npz")) as arrays:
            found = shares(torch.from_numpy(arrays["train_images"])[:, None])
        assert all(ground or share == 0 for share, ground in found.values()), name
