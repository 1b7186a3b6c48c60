"""Orientation, resampling, normalisation and cutting, on phantoms whose every corner is known."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.arrays.split import unit_range
from datamodules.batch import DataError
from datamodules.formats.cuts import Cut
from datamodules.formats.volumes import Volume, Window, canonical, resample

LEFT, BACK, HEAD = np.eye(3)


def volume(values, spacing=(1.0, 1.0, 1.0), **more) -> Volume:
    return Volume(torch.as_tensor(values, dtype=torch.float32)[None], spacing, **more)


def levels(image) -> np.ndarray:
    """int16 samples as 0 .. 65535."""
    assert image.dtype is torch.int16
    return image.numpy().astype(np.int64) + 32768


def cut(scan: Volume, **options) -> list[np.ndarray]:
    return [levels(image) for _, image, _ in Cut(least=0.0, **options).samples(scan, "scan")]


def marked(size=(4, 5, 6)) -> np.ndarray:
    """(D, H, W) in the orientation of `volumes`, with a number of its own at each corner."""
    phantom = np.zeros(size)
    for number, corner in enumerate(itertools.product((0, -1), repeat=3), start=1):
        phantom[corner] = number
    return phantom


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("signs", itertools.product((1, -1), repeat=3))
def test_an_array_is_turned_from_any_of_the_48_orientations(order, signs):
    phantom, spacing = marked(), (3.0, 2.0, 1.0)
    ways = np.stack([HEAD, BACK, LEFT], axis=1) * spacing
    stored = np.flip(phantom, [axis for axis in range(3) if signs[axis] < 0]).transpose(order)
    steps = (ways * signs)[:, order]
    # Up to a turn by 40 degrees each axis is still nearest to its own name.
    angle = np.deg2rad(40)
    oblique = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    for turn in (np.eye(3), oblique):
        turned, found = canonical(stored[None], turn @ steps)
        assert np.array_equal(turned[0], phantom) and found == pytest.approx(spacing)


def test_slices_lie_as_they_are_looked_at():
    # Front, back, left and right are those of the patient.
    phantom = np.zeros((8, 8, 8))
    names = {"head": (-1, 4, 4), "feet": (0, 4, 4), "front": (4, 0, 4), "back": (4, -1, 4), "right": (4, 4, 0)}
    for number, corner in enumerate(names.values(), start=1):
        phantom[corner] = number
    scan = volume(phantom)
    options = {"size": 8, "window": [2.5, 5.0]}
    axial, coronal, sagittal = (cut(scan, axis=axis, **options)[4][0] for axis in ("axial", "coronal", "sagittal"))
    step = 65535 / 5

    def places(image):
        return {round(image[i, j] / step): (i, j) for i, j in zip(*np.nonzero(image), strict=True)}

    assert places(axial) == {3: (0, 4), 4: (7, 4), 5: (4, 0)}  # front at the top, right at the left
    assert places(coronal) == {1: (0, 4), 2: (7, 4), 5: (3, 0)}  # head at the top, right at the left
    assert places(sagittal) == {1: (0, 4), 2: (7, 4), 3: (3, 0), 4: (3, 7)}  # head at the top, front at the left


def test_slices_come_from_the_feet_the_front_and_the_right():
    phantom = np.zeros((3, 3, 3))
    phantom[0], phantom[:, 0], phantom[:, :, 0] = 1, 1, 1
    for axis in ("axial", "coronal", "sagittal"):
        first, *others = cut(volume(phantom), axis=axis, size=3, window=[0.5, 1.0])
        assert (first == 65535).all() and not any((other == 65535).all() for other in others)


@pytest.mark.parametrize(("old", "new"), [(64, 16), (60, 25), (17, 51), (30, 30)])
def test_resampling_agrees_with_pillow(old, new):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, old, old)).astype(np.float32)
    scale = old / new
    found = resample(volume(values, (5.0, 2.0, 0.5)), (5.0, 2.0 * scale, 0.5 * scale))
    assert found.values.shape == (1, 3, new, new) and found.spacing == (5.0, 2.0 * scale, 0.5 * scale)
    for mine, plane in zip(found.values[0].numpy(), values, strict=True):
        theirs = np.asarray(Image.fromarray(plane).resize((new, new), Image.Resampling.LANCZOS))
        assert np.abs(mine - theirs).max() < 2e-6 * np.abs(plane).max() * old


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_too_fine_for_the_new_grid_does_not_alias(axis):
    size, scale = 240, 4.0
    place = np.arange(size) + 0.5
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = scale

    def kept(period):  # the amplitude after resampling, of a wave of this period in old samples
        shape = [1, 1, 1]
        shape[axis] = size
        wave = np.broadcast_to(
            np.sin(2 * np.pi * place / period).reshape(shape), [size if a == axis else 2 for a in range(3)]
        )
        found = resample(volume(wave.copy()), tuple(spacing)).values.numpy()
        inner = np.moveaxis(found[0], axis, 0)[5:-5]
        return np.sqrt(2 * (inner**2).mean())

    # The new grid carries periods of 8 old samples and more.
    assert kept(40) == pytest.approx(1, abs=0.01) and kept(16) == pytest.approx(1, abs=0.05)
    assert all(kept(period) < 0.03 for period in (5.0, 4.4, 3.6, 2.9, 2.3))
    # Every fourth sample would keep all of it.
    assert np.sqrt(2 * (np.sin(2 * np.pi * place[::4] / 4.4) ** 2).mean()) > 0.9


def test_resampling_keeps_places_and_constants():
    # A ramp in mm about the centre stays that ramp, at any scale and for sizes that do not divide.
    for old, scale in ((40, 0.7), (40, 1.9), (41, 3.3)):
        ramp = np.arange(old) - (old - 1) / 2
        found = resample(volume(np.broadcast_to(ramp, (1, 2, old)).copy()), (1.0, 1.0, scale)).values[0, 0, 0].numpy()
        expected = (np.arange(len(found)) - (len(found) - 1) / 2) * scale
        edge = int(np.ceil(3 * max(scale, 1) / scale)) + 1
        assert np.abs(found - expected)[edge:-edge].max() < 0.05
        assert torch.allclose(resample(volume(np.full((1, 2, old), 7.0)), (1.0, 1.0, scale)).values, torch.tensor(7.0))
    single = resample(volume(np.ones((1, 4, 4))), (3.0, 100.0, 2.0)).values
    assert single.shape == (1, 1, 1, 2)


def test_a_mask_takes_the_nearest_class_and_stays_on_its_object():
    ball = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(24) - 11.5] * 3, indexing="ij")), axis=0) < 8
    scan = volume(ball * 100.0, mask=torch.from_numpy(ball.astype(np.uint8) * 3)[None])
    for spacing in ((2.0, 2.0, 2.0), (0.5, 1.0, 1.5), (1.7, 1.7, 1.7)):
        found = resample(scan, spacing)
        inside = found.mask[0] == 3
        assert set(found.mask.unique().tolist()) == {0, 3} and found.mask.shape[1:] == found.values.shape[1:]
        assert found.values[0][inside].mean() > 85 and found.values[0][~inside].mean() < 6
    for (_, image, mask), axis in itertools.product(Cut(size=24, window=[50.0, 100.0]).samples(scan, ""), [0]):
        assert torch.equal((image > 0)[axis], mask[axis] == 3)


def test_percentiles_are_those_of_numpy_over_the_volume_and_per_channel():
    rng = np.random.default_rng(0)
    values = np.stack([rng.gamma(2, 100, (8, 9, 9)), rng.gamma(2, 3, (8, 9, 9))]).astype(np.float32)
    scan = Volume(torch.from_numpy(values), (1.0, 1.0, 1.0))
    found = np.stack(cut(scan, size=9, percentiles=[2, 98]), axis=1)
    low, high = np.percentile(values, [2, 98], axis=(1, 2, 3), keepdims=True)
    expected = np.clip((values - low) / (high - low), 0, 1) * 65535
    assert np.abs(found - expected).max() <= 0.51


def test_a_window_is_linear_between_its_ends_and_keeps_sixteen_bits():
    hounsfield = np.arange(-1024, 3072, dtype=np.float32).reshape(1, 64, 64)
    (image,) = (image for _, image, _ in Cut(size=64, window=[40.0, 400.0], least=0.0).samples(volume(hounsfield), ""))
    expected = np.clip((hounsfield + 160) / 400, 0, 1)
    assert np.abs(levels(image) / 65535 - expected).max() < 1e-5
    assert len(image.unique()) == 401
    assert unit_range(image).min() == -1 and unit_range(image).max() == 1


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (0, 1), (100.5, 2)])
def test_windows_map_as_pydicom_does(function, centre, width):
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    header = Dataset()
    header.PhotometricInterpretation, header.BitsStored, header.PixelRepresentation = "MONOCHROME2", 8, 0
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = centre, width, function
    values = np.arange(-200, 300, dtype=np.float64)
    expected = apply_windowing(values, header) / 255 if (function, width) != ("LINEAR", 1) else values > centre - 0.5
    found = Window(centre, width, function)(torch.from_numpy(values))
    assert np.abs(found.numpy() - expected).max() < 1e-6


def test_an_inverted_picture_is_white_where_it_is_low():
    (plain,) = cut(volume(np.eye(4)[None], flat=True), size=4)
    (turned,) = cut(volume(np.eye(4)[None], flat=True, inverted=True), size=4)
    assert np.array_equal(plain, 65535 - turned) and plain[0, 0, 0] == 65535


def test_a_slice_is_scaled_in_the_proportions_of_the_body_and_padded():
    # 20 rows of 3 mm and 30 columns of 1 mm: 60 mm high, 30 mm wide.
    image = cut(volume(np.ones((1, 20, 30)), (9.0, 3.0, 1.0)), size=16, window=[0.5, 1.0])[0][0]
    assert (image[:, 4:12] == 65535).all() and not image[:, :4].any() and not image[:, 12:].any()


def test_with_a_spacing_slices_are_cropped_and_padded_about_the_centre():
    phantom = np.zeros((1, 8, 20))
    phantom[0, :, 8:12] = 1
    image = cut(volume(phantom, (1.0, 2.0, 2.0)), size=12, spacing=[None, 2.0, 2.0], window=[0.5, 1.0])[0][0]
    expected = np.zeros((12, 12))
    expected[2:10, 4:8] = 65535
    assert np.array_equal(image, expected)
    isotropic = cut(volume(np.ones((10, 8, 8)), (3.0, 1.0, 1.0)), size=8, spacing=1.5, window=[0.5, 1.0])
    assert len(isotropic) == 20


def test_patches_cover_each_voxel_once():
    rng = np.random.default_rng(0)
    phantom = rng.integers(1, 1000, (5, 9, 4)).astype(np.float32)
    cutting = Cut(output="patches", size=4, window=[500.0, 1000.0], least=0.0)
    found = {name: levels(image) for name, image, _ in cutting.samples(volume(phantom), "scan")}
    assert list(found)[:4] == ["scan patch 0,0,0", "scan patch 0,1,0", "scan patch 0,2,0", "scan patch 1,0,0"]
    rows = [np.concatenate([found[f"scan patch {d},{h},0"][0] for h in range(3)], axis=1) for d in range(2)]
    whole = np.concatenate(rows)
    expected = np.pad(np.round(phantom / 1000 * 65535), ((1, 2), (1, 2), (0, 0)))
    assert np.abs(whole - expected).max() <= 1


def test_near_empty_pieces_are_left_out():
    phantom = np.zeros((4, 10, 10))
    for number, count in enumerate((0, 1, 2, 50)):
        phantom[number].flat[:count] = 1
    names = [name for name, _, _ in Cut(size=10, window=[0.5, 1.0], least=0.02).samples(volume(phantom), "scan")]
    assert names == ["scan axial 2", "scan axial 3"]
    noise = 0.04 * np.random.default_rng(0).random((1, 10, 10))
    assert not list(Cut(size=10, window=[0.5, 1.0]).samples(volume(noise), ""))
    assert len(list(Cut(size=10).samples(volume(np.zeros((2, 9, 9)), flat=True), ""))) == 2


def test_a_picture_without_a_pixel_size_is_square_and_refuses_a_spacing():
    scan = volume(np.eye(4)[None], None, flat=True)
    assert len(cut(scan, size=4)) == 1
    with pytest.raises(DataError, match=r"^a\.dcm does not say how large a pixel is"):
        list(Cut(spacing=1.0).samples(scan, "a.dcm"))
    with pytest.raises(DataError, match=r"^a\.dcm holds flat pictures"):
        list(Cut(output="patches").samples(scan, "a.dcm"))
    with pytest.raises(DataError, match=r"^a\.dcm advises no window"):
        list(Cut(window="header").samples(scan, "a.dcm"))


BAD = [
    {"output": "cubes"}, {"axis": "oblique"}, {"size": 0}, {"size": 1.5}, {"spacing": 0}, {"spacing": [1, 2]},
    {"spacing": [1, -1, 1]}, {"spacing": "fine"}, {"window": [40]}, {"window": [40, 0]}, {"window": "lung"},
    {"window": ["a", "b"]}, {"percentiles": [99, 1]}, {"percentiles": [0, 101]}, {"percentiles": None}, {"least": 2},
    {"least": "some"}, {"spacing": float("nan")}, {"spacing": [float("inf"), 1, 1]},
]  # fmt: skip


@pytest.mark.parametrize("options", BAD)
def test_each_bad_option_is_named(options):
    with pytest.raises(DataError, match=f"^dataset.{next(iter(options))}=") as caught:
        Cut(**options)
    assert "\n" not in str(caught.value)
