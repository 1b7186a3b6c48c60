"""NIfTI volumes, against phantoms that were written with a known place for each voxel, and nibabel's own files."""

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from datamodules.batch import DataError
from datamodules.formats.cuts import Cut
from datamodules.formats.nifti_files import read
from datamodules.nifti import Nifti
from tests.datamodules.scanner import SPACING, WAYS, body, write_nifti

CARRIED = Path(nibabel.__file__).parent / "tests" / "data"


def refused(message: str, *arguments) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value) and str(arguments[0]) in str(caught.value)


def stored(path: Path, values: np.ndarray, affine=None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("way", [*WAYS.values(), "RAS", "LAS"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_is_turned_whatever_its_orientation(tmp_path, way, suffix):
    found = read(write_nifti(tmp_path / f"a{suffix}", body(), way))
    assert np.array_equal(found.values[0].numpy(), body())
    assert found.spacing == pytest.approx(SPACING) and found.mask is None and not found.flat


REAL = ["anatomical.nii", "reoriented_anat_moved.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"]


@pytest.mark.parametrize("name", REAL)
def test_real_volumes_lie_where_nibabel_says(name):
    found = read(CARRIED / name)
    image = nibabel.as_closest_canonical(nibabel.load(CARRIED / name))
    data = image.get_fdata(dtype=np.float32).reshape(*image.shape[:3], -1)
    channels, depth, height, width = found.values.shape
    assert (width, height, depth, channels) == data.shape
    rng = np.random.default_rng(0)
    for c, d, h, w in rng.integers(0, found.values.shape, (50, 4)):
        assert found.values[c, d, h, w] == data[width - 1 - w, height - 1 - h, d, c]
    assert found.spacing == pytest.approx(tuple(image.header.get_zooms()[2::-1]))


def test_the_last_of_four_axes_is_channels(tmp_path):
    values = np.stack([body(), -body(), body() * 2], axis=-1).astype(np.float32)
    found = read(stored(tmp_path / "a.nii", values, np.diag([-1, -1, 1, 1])))
    assert found.values.shape[0] == 3
    assert torch.equal(found.values[0], -found.values[1]) and torch.equal(found.values[0] * 2, found.values[2])


def test_colours_are_three_channels(tmp_path):
    colors = np.zeros((2, 3, 4), np.dtype([(name, "u1") for name in "RGB"]))
    colors["R"], colors["G"] = 255, 128
    found = read(stored(tmp_path / "a.nii", colors))
    assert found.values[:, 0, 0, 0].tolist() == [255, 128, 0] and found.span == (0, 255)


def test_scaled_values_are_those_that_the_header_means(tmp_path):
    found = read(write_nifti(tmp_path / "a.nii", body(), slope=0.5, inter=-7.0))
    assert np.array_equal(found.values[0].numpy(), body() * 0.5 - 7)


def test_flat_and_needless_axes(tmp_path):
    assert read(stored(tmp_path / "a.nii", np.ones((4, 5), np.float32))).values.shape == (1, 1, 5, 4)
    assert read(stored(tmp_path / "b.nii", np.ones((4, 5, 6, 1, 1), np.float32))).values.shape == (1, 6, 5, 4)


def test_other_units_become_mm(tmp_path):
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), np.diag([500, 500, 2000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    assert read(tmp_path / "a.nii").spacing == (2.0, 0.5, 0.5)


def test_a_volume_that_does_not_say_how_it_lies_is_warned_of(tmp_path, caplog):
    image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.float32), None)
    nibabel.save(image, tmp_path / "a.nii")
    read(tmp_path / "a.nii")
    assert "a.nii does not say how it lies" in caplog.text


def test_masks_follow_their_scan(tmp_path):
    values = body((6, 10, 8)).astype(np.float32)
    classes = (values > 0).astype(np.int16) + (values > 100)
    scan = write_nifti(tmp_path / "a.nii", values, "PIL")
    mask = write_nifti(tmp_path / "a_seg.nii", classes.astype(np.float32), "PIL")
    found = read(scan, mask)
    assert np.array_equal(found.mask[0].numpy(), classes) and found.mask.dtype is torch.uint8
    named = write_nifti(tmp_path / "b_seg.nii", np.array([0, 500, 205], np.int16)[classes], "PIL")
    assert torch.equal(read(scan, named, [0, 500, 205]).mask, found.mask)
    for _, image, mask in Cut(size=8, spacing=1.5).samples(found, "a"):
        assert mask.shape == image.shape == (1, 8, 8) and set(mask.unique().tolist()) <= {0, 1, 2}


def test_masks_that_do_not_fit_are_named(tmp_path):
    scan = write_nifti(tmp_path / "a.nii", body())
    with pytest.raises(DataError, match=r"elsewhere.nii does not lie where .*a.nii does"):
        read(scan, write_nifti(tmp_path / "elsewhere.nii", np.zeros_like(body()), spacing=(3.0, 1.5, 2.1)))
    with pytest.raises(DataError, match=r"short.nii does not lie where"):
        read(scan, write_nifti(tmp_path / "short.nii", np.zeros_like(body()[1:])))
    with pytest.raises(DataError, match=r"half.nii has the value 0.5, which is no class .*dataset.values"):
        read(scan, write_nifti(tmp_path / "half.nii", np.full(body().shape, 0.5, np.float32)))
    with pytest.raises(DataError, match="has the value 205"):
        read(scan, write_nifti(tmp_path / "b.nii", np.full(body().shape, 205, np.int16)), [0, 204, 206])


def test_bad_volumes_are_named(tmp_path):
    refused("holds 153 values that are NaN", CARRIED / "resampled_anat_moved.nii")
    refused("is no NIfTI file", CARRIED / "row_major.dconn.nii")
    refused("does not exist", tmp_path / "absent.nii")
    refused("has 5 axes, .2, 2, 2, 2, 2.: three are needed", stored(tmp_path / "5.nii", np.ones((2,) * 5, np.float32)))
    refused("is empty, of shape .0, 3, 4.", stored(tmp_path / "0.nii", np.ones((0, 3, 4), np.float32)))
    refused("complex numbers", stored(tmp_path / "c.nii", np.ones((2, 2, 2), np.complex64)))
    infinite = np.ones((2, 2, 2), np.float32)
    infinite[0, 0, 0] = np.inf
    refused("holds 1 values that are NaN or infinite", stored(tmp_path / "i.nii", infinite))
    (tmp_path / "nothing.nii.gz").touch()
    (tmp_path / "text.nii").write_text("text" * 200)
    for name in ("nothing.nii.gz", "text.nii"):
        refused("no NIfTI file, or damaged", tmp_path / name)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_spacing_of_zero_is_refused_though_nibabel_makes_it_one(tmp_path, value):
    path = write_nifti(tmp_path / "a.nii", body())
    image = nibabel.load(path)
    image.set_sform(None, 0)
    image.set_qform(image.affine, 1)
    nibabel.save(image, tmp_path / "b.nii")
    data = bytearray((tmp_path / "b.nii").read_bytes())
    struct.pack_into("<f", data, 80, value)  # pixdim[1]
    (tmp_path / "b.nii").write_bytes(data)
    refused(r"has the spacing (0|nan) x ", tmp_path / "b.nii")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(bytes(data)))
    refused(r"has the spacing (0|nan) x ", tmp_path / "b.nii.gz")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_that_is_cut_short_is_named(tmp_path, suffix):
    whole = write_nifti(tmp_path / f"a{suffix}", body()).read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        (tmp_path / f"b{suffix}").write_bytes(whole[:length])
        refused("is no NIfTI file, or damaged", tmp_path / f"b{suffix}")


def test_a_flipped_byte_of_a_compressed_file_never_passes_for_data(tmp_path):
    whole, original = write_nifti(tmp_path / "a.nii.gz", body()).read_bytes(), body()
    path, rng = tmp_path / "b.nii.gz", np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 80):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            assert np.array_equal(read(path).values[0].numpy(), original)
        except DataError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_header_bytes_may_be_anything(tmp_path):
    whole = write_nifti(tmp_path / "a.nii", body()).read_bytes()
    rng = np.random.default_rng(1)
    for place in rng.integers(0, 352, 150):
        (tmp_path / "b.nii").write_bytes(whole[:place] + bytes([int(rng.integers(256))]) + whole[place + 1 :])
        try:
            read(tmp_path / "b.nii")
        except DataError as error:
            assert "\n" not in str(error)


def names(path: Path, **options) -> dict[str, tuple[str | None, str]]:
    items = Nifti(path=str(path), **options).items()
    return {item.name: (item.mask and item.mask.relative_to(path).as_posix(), item.patient) for item in items}


def test_masks_are_found_by_what_the_asterisk_stands_for(tmp_path):
    for name in ("imagesTr/la_1", "imagesTr/la_2", "labelsTr/la_1", "labelsTr/la_2", "imagesTs/la_3"):
        write_nifti(tmp_path / "one" / f"{name}.nii.gz", body())
    pair = {"images": "imagesTr/*.nii.gz", "masks": "labelsTr/*.nii.gz"}
    assert names(tmp_path / "one", **pair) == {
        f"imagesTr/la_{i}.nii.gz": (f"labelsTr/la_{i}.nii.gz", "") for i in (1, 2)
    }
    for kind in ("t1", "seg", "t1ce"):
        write_nifti(tmp_path / "two" / "BraTS_1" / f"BraTS_1_{kind}.nii", body())
    pair = {"images": "*_t1.nii", "masks": "*_seg.nii"}
    assert names(tmp_path / "two", **pair) == {"BraTS_1/BraTS_1_t1.nii": ("BraTS_1/BraTS_1_seg.nii", "")}
    assert len(names(tmp_path / "two", images="*_t1*.nii")) == 2 and len(names(tmp_path / "two")) == 3
    with pytest.raises(DataError, match=r"1 of 1 scans have no mask, the first BraTS_1/BraTS_1_t1ce.nii"):
        names(tmp_path / "two", images="*_t1ce.nii", masks="*_mask.nii")
    for bad in ({"masks": "*_seg.nii"}, {"images": "*_*.nii", "masks": "*_seg.nii"}, {"images": "a.nii", "masks": "*"}):
        with pytest.raises(DataError, match="each with one"):
            names(tmp_path / "two", **bad)
    with pytest.raises(DataError, match="holds no NIfTI files"):
        names(tmp_path / "two", images="*.hdr")


def test_subjects_of_bids_are_patients(tmp_path):
    for name in ("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-01/ses-b/anat/sub-01_ses-b_T1w", "sub-02/anat/sub-02_T1w"):
        write_nifti(tmp_path / f"{name}.nii.gz", body())
    assert [patient for _, patient in names(tmp_path).values()] == ["sub-01", "sub-01", "sub-02"]
    write_nifti(tmp_path / "template.nii", body())
    assert {patient for _, patient in names(tmp_path).values()} == {""}
    assert [patient for _, patient in names(tmp_path, images="sub-*").values()] == ["sub-01", "sub-01", "sub-02"]
