"""Grey images and volumes before a network for colour images; its input."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffusion.extractors import extract
from diffusion.extractors.planar import Photographs, Planar, check_channels
from tests.extractors.toy import data, images, refusal


class Tones(Planar):
    """The mean of each channel and its square, and made-up probabilities."""

    name = "tones"

    def __init__(self, *shape):
        super().__init__(data(*shape), nn.Linear(1, 1), 6, ("as it is", 8))

    def planar(self, images):
        assert images.dtype is torch.uint8 and images.ndim == 4 and images.shape[1] == 3 and len(images) <= 64
        means = images.float().mean((2, 3)) / 255
        return torch.cat([means, means.square()], 1), means.softmax(1)


class Pixels(Photographs):
    """Its own input."""

    name = "pixels"

    def __init__(self, shape, side, interpolation, statistics=((0, 0, 0), (1, 1, 1))):
        network = nn.Sequential(nn.Flatten(), Scale())
        super().__init__(data(*shape), network, side, interpolation, statistics)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.factor * x


def test_a_grey_image_is_the_same_in_colour():
    grey = images(70, 1, 8, 8)
    found, colour = extract(Tones(1, 8, 8), grey), extract(Tones(3, 8, 8), grey.expand(-1, 3, -1, -1))
    assert torch.equal(found.values, colour.values) and torch.equal(found.probabilities, colour.probabilities)
    assert Tones(1, 8, 8).receipt()["channels"] == "one channel repeated three times"
    assert Tones(3, 8, 9).receipt()["channels"] == "as they are"
    assert (
        Tones(3, 8, 9).receipt()["resize"] == "as it is, 8 x 9 -> 8 x 8" and Tones(3, 8, 9).receipt()["volumes"] is None
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_volume_is_the_mean_of_its_slices(channels):
    shape = (channels, 11, 6, 28)
    volumes = images(3, *shape)
    slices = [
        *(volumes[:, :, place] for place in (2, 4, 6, 8)),
        *(volumes[:, :, :, place] for place in (1, 2, 3, 4)),
        *(volumes[:, :, :, :, place] for place in (5, 11, 16, 22)),
    ]
    each = [extract(Tones(channels, 8, 8), part) for part in slices]
    found = extract(Tones(*shape), volumes)
    torch.testing.assert_close(found.values, torch.stack([part.values for part in each]).mean(0))
    torch.testing.assert_close(found.probabilities, torch.stack([part.probabilities for part in each]).mean(0))
    receipt = Tones(*shape).receipt()
    assert receipt["volumes"] == "mean over 4 slices along each of 3 axes"
    assert receipt["resize"] == "as it is, slices of 11 x 6 x 28 -> 8 x 8"


def test_a_volume_of_one_tone_is_any_of_its_slices():
    flat = images(5, 1, 1, 1, 1).expand(-1, -1, 8, 8, 8)
    found = extract(Tones(1, 8, 8, 8), flat, batch_size=2)
    torch.testing.assert_close(found.values, extract(Tones(1, 8, 8), flat[:, :, 0]).values)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(channels):
    said = refusal(check_channels, "timm", data(channels, 8, 8))
    assert f"not of {channels} as in scans.npz" in said and "extractor=domain" in said


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(28, 20), (9, 11)])
def test_images_are_resized_as_pillow_does(interpolation, size):
    picture = images(1, 1, *size)
    found = extract(Pixels((1, *size), 16, interpolation), picture).values.view(3, 16, 16) * 255
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    theirs = Image.fromarray(picture[0, 0].numpy().astype(np.float32)).resize((16, 16), kind)
    wanted = torch.from_numpy(np.array(theirs)).clamp(0, 255)
    torch.testing.assert_close(found, wanted.expand(3, -1, -1), rtol=0, atol=1e-2)
    receipt = Pixels((1, *size), 16, interpolation).receipt()
    assert receipt["resize"] == f"{interpolation}, antialiased, {size[0]} x {size[1]} -> 16 x 16"


def test_an_interpolation_of_another_kind_is_bicubic():
    lanczos, bicubic = (Pixels((1, 8, 8), 16, kind) for kind in ("lanczos", "bicubic"))
    assert torch.equal(extract(lanczos, images(2, 1, 8, 8)).values, extract(bicubic, images(2, 1, 8, 8)).values)
    assert lanczos.receipt()["resize"].startswith("bicubic")


def test_images_are_normalised():
    pictures, mean, std = images(2, 3, 4, 4), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    found = extract(Pixels((3, 4, 4), 4, "bilinear", (mean, std)), pictures).values.view(2, 3, 4, 4)
    wanted = [(pictures[:, c] / 255 - mean[c]) / std[c] for c in range(3)]
    torch.testing.assert_close(found, torch.stack(wanted, 1))
