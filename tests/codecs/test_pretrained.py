import json
import shutil
import sys

import pytest
import torch

from diffusion.codecs import Diffusers
from diffusion.errors import UserError

diffusers = pytest.importorskip("diffusers")
SCALE, SHIFT = 0.3, 0.7


def tiny(**options):
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        **options,
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae")
    tiny(scaling_factor=SCALE, shift_factor=SHIFT).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval()


def save(path, **options):
    tiny(**options).save_pretrained(path)
    return str(path)


@pytest.mark.slow
@torch.no_grad()
def test_it_encodes_and_decodes_as_the_library_does(folder, theirs):
    codec, images = Diffusers(str(folder)), torch.randn(2, 3, 8, 12)
    posterior = theirs.encode(images).latent_dist
    moments = codec.moments(images)
    assert torch.equal(moments, torch.cat([posterior.mean, posterior.std], dim=1))
    latents = (posterior.mean - SHIFT) * SCALE
    torch.testing.assert_close(codec.encode(images), latents)
    noise = torch.randn(2, *codec.latent_shape((3, 8, 12)))
    drawn = codec.draw(moments, lambda shape: noise.reshape(2, *shape))
    torch.testing.assert_close(drawn, (posterior.mean + posterior.std * noise - SHIFT) * SCALE)
    torch.testing.assert_close(codec.decode(latents), theirs.decode(posterior.mean).sample)
    assert codec.latent_shape((3, 8, 12)) == latents.shape[1:] == (4, 4, 6)


@torch.no_grad()
def test_grey_images_are_lifted_and_brought_back(folder, theirs):
    codec, images = Diffusers(str(folder)).for_images((1, 8, 8)), torch.randn(2, 1, 8, 8)
    z = theirs.encode(images.repeat(1, 3, 1, 1)).latent_dist.mean
    torch.testing.assert_close(codec.encode(images), (z - SHIFT) * SCALE)
    restored = codec.decode(codec.encode(images))
    torch.testing.assert_close(restored, theirs.decode(z).sample.mean(1, keepdim=True))
    assert restored.shape == images.shape and codec.latent_shape((1, 8, 8)) == (4, 4, 4)


def test_a_grey_autoencoder_takes_grey_images(tmp_path):
    codec = Diffusers(save(tmp_path, in_channels=1, out_channels=1, shift_factor=None))
    images = torch.randn(1, 1, 4, 4)
    assert codec.decode(codec.encode(images)).shape == images.shape and codec.latent_shape((1, 4, 4)) == (4, 2, 2)
    with pytest.raises(UserError, match=r"images of 3 channels.*which takes 1: choose another autoencoder"):
        codec.latent_shape((3, 4, 4))


def test_a_pipeline_holds_it_in_a_subfolder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "vae")
    shutil.copytree(folder, tmp_path / "other")
    expected = Diffusers(str(folder)).fingerprint
    assert Diffusers(str(tmp_path)).fingerprint == Diffusers(str(tmp_path), "other").fingerprint == expected


def test_the_fingerprint_tells_weights_and_scales_apart(tmp_path):
    torch.manual_seed(0)
    model = tiny()
    found = []
    for change in ("none", "weight", "scale"):
        if change == "weight":
            model.decoder.conv_out.bias.data += 1e-3
        if change == "scale":
            model.register_to_config(scaling_factor=0.5)
        model.save_pretrained(tmp_path / change)
        found.append(Diffusers(str(tmp_path / change)).fingerprint)
    assert len(set(found)) == 3 and all(len(value) == 16 for value in found)
    assert Diffusers(str(tmp_path / "none")).fingerprint == found[0]


def test_it_is_frozen_and_exact(folder):
    codec, images = Diffusers(str(folder)).train(), torch.randn(1, 3, 8, 8)
    assert not codec.state_dict() and not list(codec.parameters()) and not codec.frozen.network.training
    moments = codec.moments(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.moments(images), moments)
        assert codec.decode(codec.encode(images)).dtype is torch.float32
    assert not moments.requires_grad


def test_half_precision_on_disk_is_float32_here(tmp_path):
    tiny().bfloat16().save_pretrained(tmp_path)
    assert Diffusers(str(tmp_path)).moments(torch.randn(1, 3, 4, 4)).dtype is torch.float32


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((4, 8, 8), "images of 4 channels.* choose another autoencoder"),
        ((3, 8, 7), "8 x 7 .* multiples of 2"),
        ((3, 8, 8, 8), "not 2-D"),
    ],
)
def test_images_that_do_not_fit_are_refused(folder, shape, said):
    with pytest.raises(UserError, match=said):
        Diffusers(str(folder)).latent_shape(shape)


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        Diffusers(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_loaded_is_named_in_one_line(folder, tmp_path, monkeypatch):
    assert "codec.path=" in refusal(None)
    assert str(tmp_path) in refusal(str(tmp_path))
    assert "could not be loaded" in refusal("/no/such/path")
    assert str(folder / "unet") in refusal(str(folder), "unet")

    diffusers.UNet2DModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=8,
    ).save_pretrained(tmp_path / "unet")
    assert "holds UNet2DModel" in refusal(str(tmp_path / "unet"))

    copy = shutil.copytree(folder, tmp_path / "wider")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    assert "lacks" in refusal(str(copy))
    (copy / "config.json").write_text(json.dumps({**config, "latent_channels": 5}))
    assert "could not be loaded" in refusal(str(copy))
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    assert "could not be loaded" in refusal(str(copy))

    def offline(*_, **__):
        raise OSError("We couldn't connect\nCheckout your internet connection")

    monkeypatch.setattr(diffusers.AutoencoderKL, "load_config", offline)
    said = refusal("someone/pipeline", "vae")
    assert "someone/pipeline, subfolder vae" in said and "couldn't connect Checkout" in said


def test_a_missing_library_is_named_with_its_cure(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert 'pip install "diffusers>=0.35"' in refusal(str(folder))
