import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from datamodules.batch import DataError
from datamodules.formats.pictures import fitted, fitted_mask, read_mask, read_picture
from tests.datamodules.pictures import noise, png16, save

RGB, GREY, RGB16, GREY16 = noise(0), noise(1, (20, 24)), noise(2, dtype=np.uint16), noise(3, (20, 24), np.uint16)


@pytest.mark.parametrize(
    ("name", "array", "options"),
    [
        ("rgb.png", RGB, {}),
        ("grey.png", GREY, {}),
        ("grey16.png", GREY16, {}),
        ("rgb.bmp", RGB, {}),
        ("grey.bmp", GREY, {}),
        ("rgb.tif", RGB, {}),
        ("lzw.tif", RGB, {"compression": "tiff_lzw"}),
        ("deflate.tiff", RGB, {"compression": "tiff_adobe_deflate"}),
        ("grey16.tif", GREY16, {}),
    ],
)
def test_what_is_saved_without_loss_is_read_back(tmp_path, name, array, options):
    found = read_picture(save(tmp_path / name, array, **options))
    assert found.dtype == array.dtype and np.array_equal(found.squeeze(), array) and found.ndim == 3


def test_sixteen_bits_of_colour_are_kept(tmp_path):
    """Pillow reads both as 8 bits, without a word."""
    (tmp_path / "x.png").write_bytes(png16(RGB16))
    tifffile.imwrite(tmp_path / "x.tif", RGB16, photometric="rgb")
    for name in ("x.png", "x.tif"):
        assert np.array_equal(read_picture(tmp_path / name), RGB16)
    alpha = np.concatenate([RGB16, RGB16[..., :1]], -1)
    (tmp_path / "alpha.png").write_bytes(png16(alpha))
    assert np.array_equal(read_picture(tmp_path / "alpha.png"), RGB16)


@pytest.mark.parametrize("channels", [2, 5, 12])
def test_any_number_of_channels_in_a_tiff(tmp_path, channels):
    planes = noise(4, (channels, 20, 24), np.uint16)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="minisblack", metadata={"axes": "CYX"})
    assert np.array_equal(read_picture(tmp_path / "planes.tif"), planes.transpose(1, 2, 0))


def test_a_jpeg_is_near_to_what_was_saved_and_upright(tmp_path):
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None].repeat(48, 0).repeat(3, 2)
    path = save(tmp_path / "x.jpg", ramp, quality=95)
    assert np.abs(read_picture(path).astype(int) - ramp).max() <= 3
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned = read_picture(save(tmp_path / "turned.jpg", ramp, quality=95, exif=exif))
    assert np.abs(turned.astype(int) - np.rot90(ramp, -1)).max() <= 3


def test_palettes_become_colours_and_transparency_is_left_out(tmp_path):
    palette = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5), "P")
    palette.putpalette([255 - i // 3 for i in range(768)])
    palette.save(tmp_path / "palette.png")
    assert read_picture(tmp_path / "palette.png")[0, 3].tolist() == [252] * 3
    assert read_mask(tmp_path / "palette.png")[0].tolist() == [0, 1, 2, 3, 4]
    alpha = np.concatenate([RGB, GREY[..., None]], -1)
    assert np.array_equal(read_picture(save(tmp_path / "alpha.png", alpha)), RGB)


def test_a_mask_in_colours_is_read_in_grey(tmp_path):
    grey = (GREY > 99).astype(np.uint8) * 255
    assert np.array_equal(read_mask(save(tmp_path / "rgb.png", np.stack([grey] * 3, -1))), grey)
    assert np.array_equal(read_mask(save(tmp_path / "grey.tif", grey)), grey)


def test_shrinking_agrees_with_pillow():
    picture = Image.fromarray(noise(5, (90, 90)))
    ours = fitted(torch.from_numpy(np.asarray(picture, np.float32))[None], 32, "stretch")[0].clamp(0, 255).round()
    theirs = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)).astype(np.float32)
    assert np.abs(ours.numpy() - theirs).max() <= 1


def test_what_is_not_square_is_cropped_padded_or_stretched():
    image = torch.arange(8.0).expand(1, 4, 8)
    assert fitted(image, 4, "crop")[0, 0].tolist() == [2, 3, 4, 5]
    padded = fitted(image, 8, "pad")[0]
    assert padded[:2].abs().max() == 0 and padded[6:].abs().max() == 0 and padded[3].tolist() == list(range(8))
    assert fitted(image, 4, "stretch").shape == (1, 4, 4)
    with pytest.raises(DataError, match=r"dataset.fit=cut: use crop, pad or stretch"):
        fitted(image, 4, "cut")


def test_a_mask_takes_the_class_that_covers_most():
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, :, 3:] = 2  # five of eight columns
    assert fitted_mask(mask, 2, "crop", 3)[0].tolist() == [[0, 2], [0, 2]]
    assert fitted_mask(mask, 8, "crop", 3).equal(mask)
