"""DICOM series, against phantoms that were written with a known place for each voxel, and pydicom's own files."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
import torch
from pydicom import Dataset, dcmread
from pydicom.pixels import apply_modality_lut, apply_windowing, get_decoder, pixel_array
from pydicom.sequence import Sequence

from datamodules.batch import DataError
from datamodules.formats.cuts import Cut
from datamodules.formats.dicom_files import find
from datamodules.formats.dicom_pixels import read
from datamodules.formats.nifti_files import read as read_nifti
from datamodules.formats.volumes import Volume
from tests.datamodules.scanner import (
    CR,
    SPACING,
    WAYS,
    body,
    enhanced,
    header,
    save,
    with_pixels,
    write_nifti,
    write_series,
)

CARRIED = Path(pydicom.data.__file__).parent / "test_files"


def volumes(folder: Path, **options) -> list[Volume]:
    return [volume for series in find(folder, **options) for volume in read(series)]


def only(folder: Path) -> Volume:
    (volume,) = volumes(folder)
    return volume


def carried(tmp_path: Path, *names: str) -> Path:
    """A folder with some of the files in pydicom's wheel."""
    for name in names:
        shutil.copy(CARRIED / name, tmp_path / Path(name).name)
    return tmp_path


def refused(folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        volumes(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_series_is_put_together_whatever_its_orientation_and_the_order_of_files(tmp_path, way):
    write_series(tmp_path, body(), way)
    found = only(tmp_path)
    assert np.array_equal(found.values[0].numpy(), body())
    assert found.spacing == pytest.approx(SPACING) and not found.flat


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_multi_frame_file_is_put_together_by_its_frames(tmp_path, way, caplog):
    save(enhanced(body(), way), tmp_path / "one.dcm")
    found = only(tmp_path)
    assert np.array_equal(found.values[0].numpy(), body())
    assert found.spacing == pytest.approx(SPACING) and not caplog.records


@pytest.mark.parametrize("options", [{"axis": "coronal"}, {"spacing": 2.0}, {"output": "patches", "size": 4}])
def test_dicom_and_nifti_of_one_body_give_the_same_samples(tmp_path, options):
    write_series(tmp_path / "dicom", body(), "SPL")
    write_nifti(tmp_path / "scan.nii.gz", body().astype(np.float32), "RAS")
    cut = Cut(**{"size": 8} | options)
    one = [image for _, image, _ in cut.samples(only(tmp_path / "dicom"), "")]
    other = [image for _, image, _ in cut.samples(read_nifti(tmp_path / "scan.nii.gz"), "")]
    assert len(one) == len(other) > 1
    # Spacings in NIfTI are float32.
    assert (torch.stack(one).int() - torch.stack(other).int()).abs().max() <= 1


def test_each_slice_has_its_own_slope(tmp_path):
    paths = write_series(tmp_path, body())
    for number, path in enumerate(paths):
        found = dcmread(path)
        stored = (pixel_array(found).astype(np.int64) - 1024 + 2000) * 2 ** (number % 3)
        found.RescaleSlope, found.RescaleIntercept = 0.5 ** (number % 3), -2000
        save(with_pixels(found, stored.astype(np.uint16)), path)
    assert np.array_equal(only(tmp_path).values[0].numpy(), body())


def test_a_lookup_table_gives_the_values(tmp_path):
    found = with_pixels(header(CR), np.arange(12, dtype=np.uint8).reshape(3, 4))
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [12, 0, 16], "US"
    table.LUTData = [int(x) ** 2 for x in range(12)]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    found.ModalityLUTSequence = Sequence([table])
    save(found, tmp_path / "a")
    assert only(tmp_path).values.flatten().tolist() == [x**2 for x in range(12)]


def test_what_the_scanner_did_not_see_takes_the_lowest_value(tmp_path):
    for path in write_series(tmp_path, np.maximum(body(), -900)):
        found = dcmread(path)
        stored = pixel_array(found).copy()
        stored[:, 0] = 63000
        found.PixelPaddingValue = 63000
        found["PixelPaddingValue"].VR = "US"
        save(with_pixels(found, stored), path)
    values = only(tmp_path).values[0]
    assert (values[:, :, 0] == -900).all() and values.max() < 1000


@pytest.mark.parametrize("name", ["CR1/6154", "CR2/6247"])
def test_a_radiograph_is_shown_as_its_header_says(tmp_path, name):
    path = CARRIED / "dicomdirtests/77654033" / name
    found = only(carried(tmp_path, f"dicomdirtests/77654033/{name}"))
    ((_, image, mask),) = Cut(size=16, window="header").samples(found, "")
    original = dcmread(path)
    shown = apply_windowing(apply_modality_lut(pixel_array(original), original), original)
    most = original.RescaleSlope * (2**original.BitsStored - 1) + original.RescaleIntercept
    low = float(original.RescaleIntercept)
    expected = 1 - (shown - low) / (most - low)  # MONOCHROME1: the lowest value is white
    assert original.PhotometricInterpretation == "MONOCHROME1" and found.flat and mask is None
    assert np.abs((image[0].numpy() + 32768.0) / 65535 - expected).max() < 1e-4


COLORS = {
    "examples_rgb_color.dcm": 1, "examples_palette.dcm": 1, "SC_ybr_full_422_uncompressed.dcm": 1,
    "SC_rgb_jpeg_dcmtk.dcm": 1, "SC_rgb_rle_2frame.dcm": 2, "SC_rgb_rle_16bit.dcm": 1, "examples_ybr_color.dcm": 30,
}  # fmt: skip


@pytest.mark.parametrize("name", COLORS)
def test_colours_become_red_green_and_blue(tmp_path, name):
    from pydicom.pixels import apply_color_lut

    found = only(carried(tmp_path, name))
    original = dcmread(CARRIED / name)
    expected = pixel_array(original)
    if original.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(expected, original)
    expected = expected.reshape(-1, *expected.shape[-3:]).transpose(3, 0, 1, 2)
    assert found.flat and found.values.shape[1] == COLORS[name]
    assert np.array_equal(found.values.numpy(), expected)
    samples = [name for name, _, _ in Cut(size=16, window=[40, 400]).samples(found, "us")]
    assert samples == (["us"] if COLORS[name] == 1 else [f"us picture {i}" for i in range(COLORS[name])])


def test_yellow_is_yellow(tmp_path):
    # Of (255, 255, 0) by ITU-R BT.601.
    for kind, pixel in {"RGB": (255, 255, 0), "YBR_FULL": (226, 0, 149)}.items():
        found = header(CR, SamplesPerPixel=3, PhotometricInterpretation=kind)
        save(with_pixels(found, np.full((4, 4, 3), pixel, np.uint8)), tmp_path / kind)
    for found in volumes(tmp_path):
        ((_, image, _),) = Cut(size=4).samples(found, "")
        assert ((image[:, 0, 0].float() + 32768) / 65535 - torch.tensor([1.0, 1.0, 0.0])).abs().max() < 0.01


SAME = [f"MR_small_{kind}.dcm" for kind in ("bigendian", "expb", "implicit", "padded", "RLE", "jp2klossless")]


@pytest.mark.parametrize("name", SAME)
def test_every_way_to_store_pixels_gives_the_same_ones(tmp_path, name):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one, other = only(carried(tmp_path / "a", "MR_small.dcm")), only(carried(tmp_path / "b", name))
    assert torch.equal(one.values, other.values) and one.spacing == other.spacing and one.window == other.window
    assert one.values.max() == 2145


def test_a_syntax_without_decoder_says_what_to_install(tmp_path):
    for name, package in {"MR_small_jpeg_ls_lossless.dcm": "pyjpegls", "SC_rgb_jpeg_gdcm.dcm": "python-gdcm"}.items():
        folder = tmp_path / package
        folder.mkdir()
        carried(folder, name)
        if not get_decoder(dcmread(folder / name).file_meta.TransferSyntaxUID).is_available:
            refused(folder, rf"{name} is compressed as JPEG.*python -m pip install {package}$")
    carried(tmp_path / "pyjpegls", "MR_small.dcm")
    assert len(volumes(tmp_path / "pyjpegls", skip=True)) == 1


def test_a_decoder_that_fails_says_what_else_may_do(tmp_path):
    from pydicom.pixels.decoders import JPEGExtended12BitDecoder

    if "gdcm" not in JPEGExtended12BitDecoder.available_plugins:
        refused(carried(tmp_path, "JPEG-lossy.dcm"), "in its pixels, JPEG Extended .*or needs .* install python-gdcm")


def test_a_syntax_that_nobody_knows_is_named(tmp_path):
    write_series(tmp_path, body())
    found = dcmread(tmp_path / "IM0002")
    found.file_meta.TransferSyntaxUID = "1.2.826.0.1.3680043.8.498.1"
    found.save_as(tmp_path / "IM0002", implicit_vr=False, little_endian=True)
    refused(
        tmp_path, r"IM0002 has a transfer syntax that pydicom does not know \(1\.2\.826\.0\.1\.3680043\.8\.498\.1\)"
    )


def test_without_positions_slices_go_by_their_numbers(tmp_path, caplog):
    values = body()
    for number, slice_ in enumerate(values):
        found = header(InstanceNumber=10 + number, PixelSpacing=[1.5, 2.0], SpacingBetweenSlices=-3)
        save(with_pixels(found, slice_), tmp_path / f"{9 - number}.ima")
    found = only(tmp_path)
    assert np.array_equal(found.values[0].numpy(), values) and found.spacing == SPACING
    assert "do not say where all slices lie: they are stacked by their numbers" in caplog.text


def test_a_single_slice_without_a_position_is_stacked_by_its_number_too(tmp_path, caplog):
    paths = write_series(tmp_path, body())
    for path in paths:
        found = dcmread(path)
        found.InstanceNumber = round((found.ImagePositionPatient[2] - 700) / 3) + 1
        if found.InstanceNumber == 3:
            del found.ImagePositionPatient
        save(found, path)
    assert np.array_equal(only(tmp_path).values[0].numpy(), body())
    assert "do not say where all slices lie" in caplog.text


def test_missing_and_unequal_distances_are_said_with_their_numbers(tmp_path, caplog):
    for path in write_series(tmp_path, body()):
        found = dcmread(path)
        if found.ImagePositionPatient[2] == 709.0:
            path.unlink()
    assert only(tmp_path).spacing == pytest.approx(SPACING)
    assert "slices are 3 to 6 mm apart: 3 mm are assumed for all" in caplog.text
    caplog.clear()
    for path in tmp_path.iterdir():
        found = dcmread(path)
        del found.PixelSpacing
        save(found, path)
    assert only(tmp_path).spacing is None
    assert "do not say how large a pixel is" in caplog.text
    assert "patient" not in caplog.text


def test_a_tilted_gantry_is_said(tmp_path, caplog):
    for path in write_series(tmp_path, body()):
        found = dcmread(path)
        x, y, z = map(float, found.ImagePositionPatient)
        found.ImagePositionPatient = [x, y + 0.5 * (z - 700) / 3, z]
        save(found, path)
    assert only(tmp_path).spacing == pytest.approx(SPACING)
    assert "each slice is shifted by 0.5 mm" in caplog.text


def test_places_that_come_twice_are_two_volumes(tmp_path):
    write_series(tmp_path / "series" / "a", body())
    for path in write_series(tmp_path / "series" / "b", body(seed=1)):
        found = dcmread(path)
        found.InstanceNumber += 100
        save(found, path)
    one, other = volumes(tmp_path)
    assert np.array_equal(one.values[0].numpy(), body()) and np.array_equal(other.values[0].numpy(), body(seed=1))
    (tmp_path / "series" / "b" / "IM0003").unlink()
    refused(tmp_path, "the series of series/a/IM0000 has 1 slices at some places and 2 at others")


def test_orientations_within_a_series_are_volumes_of_their_own(tmp_path):
    for way in ("SPL", "PIL", "LIP"):
        write_series(tmp_path / way, body((6, 6, 6)), way)
    assert [tuple(volume.values.shape) for volume in volumes(tmp_path)] == [(1, 6, 6, 6)] * 3


def test_copies_of_a_file_count_once(tmp_path, caplog):
    paths = write_series(tmp_path, body())
    shutil.copy(paths[2], tmp_path / "copy of it.dcm")
    assert len(only(tmp_path).values[0]) == len(body())
    assert "1 files are copies of others" in caplog.text


def test_mixed_sizes_are_refused_by_name(tmp_path):
    write_series(tmp_path / "chest", body())
    found = dcmread(tmp_path / "chest" / "IM0001")
    save(with_pixels(found, np.zeros((7, 7), np.uint16)), tmp_path / "chest" / "IM0001")
    write_series(tmp_path / "head", body(), series="1.2.3.5")
    refused(tmp_path, r"the series of chest mixes slices of 7 x 7 and 10 x 8 pixels: move")
    assert [series.name for series in find(tmp_path, skip=True)] == ["head"]


def test_what_is_no_image_is_left_out_and_counted(tmp_path, caplog):
    carried(tmp_path, "rtplan.dcm", "test-SR.dcm", "liver_1frame.dcm", "rtdose.dcm", "dicomdirtests/DICOMDIR")
    write_series(tmp_path / "ct", body())
    write_series(tmp_path / "scout", body(), series="1.2.3.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (tmp_path / "notes.txt").write_text("x" * 200)
    (tmp_path / "empty.dcm").touch()
    (tmp_path / ".hidden").write_text("x")
    assert [series.name for series in find(tmp_path)] == ["ct"]
    for what in ("2 are no DICOM files", "2 hold no image", "such as empty.dcm", "1 are segmentations", "1 are doses"):
        assert what in caplog.text
    assert "6 are localizers" in caplog.text and "burned" not in caplog.text


def test_text_in_the_pixels_is_warned_of(tmp_path, caplog):
    save(with_pixels(header(CR, BurnedInAnnotation="YES"), np.eye(4, dtype=np.uint8)), tmp_path / "a")
    assert len(find(tmp_path)) == 1
    assert "1 files say that text is burned into their pixels" in caplog.text


def test_folders_without_images_are_refused(tmp_path):
    refused(tmp_path, f"^{tmp_path} holds no DICOM images: it is empty")
    (tmp_path / "a.txt").write_text("text")
    refused(tmp_path, r"holds no DICOM images: 1 are no DICOM files \(such as a.txt\)")
    refused(tmp_path / "absent", "absent does not exist")
    write_series(tmp_path, body())
    with pytest.raises(DataError, match="not of modality MR"):
        find(tmp_path, modality="MR")


def test_damaged_files_are_named(tmp_path):
    whole = write_series(tmp_path / "whole", body())[0].read_bytes()
    messages = {
        -1: "pixels",
        -60: "pixels",
        300: "without pixels|header|no DICOM images",
        140: "header|no DICOM images",
    }
    for cut, message in messages.items():
        path = tmp_path / str(cut) / "broken.dcm"
        path.parent.mkdir()
        path.write_bytes(whole[:cut])
        refused(path.parent, message)
    for name in ("MR_truncated.dcm", "dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000"):
        folder = tmp_path / Path(name).name
        folder.mkdir()
        carried(folder, name)
        refused(folder, f"{Path(name).name} is ")


@pytest.mark.parametrize("kind", ["plain", "JPEG-lossy.dcm", "SC_rgb_rle.dcm"])
def test_no_damage_raises_anything_but_a_data_error(tmp_path, kind):
    original = write_series(tmp_path / "whole", body())[0] if kind == "plain" else CARRIED / kind
    whole, rng = original.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "damaged" / "a.dcm"
    path.parent.mkdir()
    head = min(len(whole), 1500)
    for place in rng.integers(132, head, 40):
        flipped = whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :]
        for damaged in (flipped, whole[:place]):
            path.write_bytes(damaged)
            try:
                volumes(path.parent)
            except DataError as error:
                assert "\n" not in str(error)


@pytest.mark.slow
def test_every_image_that_pydicom_carries_is_read_or_named(caplog):
    found = find(CARRIED, skip=True)
    shapes = {}
    for series in found:
        try:
            shapes[series.name] = [tuple(volume.values.shape) for volume in read(series)]
        except DataError as error:
            assert str(series.files[0]) in str(error)
    assert shapes["dicomdirtests/98892001/CT5N"] == [(1, 5, 16, 16)]
    assert shapes["CT_small.dcm"] == [(1, 1, 128, 128)]
    assert len(shapes["dicomdirtests/98892003/MR2/6273"]) == 3  # a localizer: one slice each way
    assert len(shapes) > 30
    assert len({series.group for series in found if series.name.startswith("dicomdirtests/77654033")}) == 1
    assert logging.getLogger("pydicom").propagate
