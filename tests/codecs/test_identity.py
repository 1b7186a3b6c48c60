import torch

from diffusion.codecs import Codec, Identity


def no_noise(shape):
    raise AssertionError("pixels need no noise")


def test_every_step_gives_back_the_very_tensor():
    codec, images = Identity(), torch.randn(2, 1, 3, 5)
    assert codec.moments(images) is images and codec.draw(images, no_noise) is images
    assert codec.encode(images) is images and codec.decode(codec.encode(images)) is images


def test_the_shape_stays_and_there_is_nothing_to_check():
    codec = Identity()
    assert isinstance(codec, Codec) and codec.fingerprint is None
    assert codec.latent_shape([3, 28, 20]) == (3, 28, 20) and codec.latent_shape((1, 4, 5, 6)) == (1, 4, 5, 6)
    assert not list(codec.parameters()) and not codec.state_dict()
