"""What only an autoencoder's run does: statistics of its latents in every checkpoint, pictures of what comes back."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from datamodules.digits import Digits
from diffusion.callbacks import EMA, LatentStatistics, Reconstructions
from diffusion.errors import UserError
from diffusion.networks import Autoencoder, Gaussian, VectorQuantizer


class Module(pl.LightningModule):
    def __init__(self, bottleneck=Gaussian):
        super().__init__()
        torch.manual_seed(0)
        self.network = self.trained = Autoencoder(1, (8, 8), bottleneck, channels=4, multipliers=(1, 2))


def trainer(step=3):
    return SimpleNamespace(
        global_step=step, datamodule=Digits(), is_global_zero=True, should_stop=True, loggers=[], global_rank=0
    )


def averaged(module):
    """An EMA whose average is not the module's weights."""
    ema = EMA()
    ema.setup(trainer(), module, "fit")
    for value in ema.average.values():
        value.add_(0.1)
    return ema


def test_statistics_are_of_the_averaged_encoder_over_the_training_images():
    module = Module()
    ema, checkpoint = averaged(module), {}
    LatentStatistics(ema, limit=10_000, batch_size=100).on_save_checkpoint(trainer(), module, checkpoint)
    images = Digits().split("train")[torch.arange(len(Digits().split("train")))]["image"]
    assert checkpoint["latents"]["images"] == len(images)
    with ema.applied(module.network), torch.no_grad():
        mean, std = module.network.moments(images).double().transpose(0, 1).flatten(1).chunk(2)
    wanted = (mean.var(1, correction=0) + std.square().mean(1)).sqrt()
    torch.testing.assert_close(checkpoint["latents"]["mean"].double(), mean.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(checkpoint["latents"]["std"].double(), wanted, rtol=1e-5, atol=1e-6)


def test_two_checkpoints_of_one_step_are_measured_once():
    module, first, second = Module(), {}, {}
    statistics = LatentStatistics(averaged(module), limit=20)
    statistics.on_save_checkpoint(trainer(3), module, first)
    with torch.no_grad():
        module.network.encoder.output.bias.add_(1.0)
    statistics.on_save_checkpoint(trainer(3), module, second)
    assert second["latents"] is first["latents"] and first["latents"]["images"] == 20


def test_the_average_goes_with_the_buffers_as_they_are():
    module, checkpoint = Module(VectorQuantizer), {}
    ema = averaged(module)
    ema.on_save_checkpoint(trainer(), module, checkpoint)
    assert checkpoint["ema"].keys() == module.network.state_dict().keys()
    buffers = dict(module.network.named_buffers())
    assert buffers and all(torch.equal(checkpoint["ema"][name], value) for name, value in buffers.items())
    restored = EMA()
    restored.on_load_checkpoint(trainer(), module, checkpoint)
    assert restored.average.keys() == dict(module.network.named_parameters()).keys()


def test_pictures_show_original_reconstruction_and_difference(tmp_path):
    module = Module().eval()
    batch = Digits().split("val")[torch.arange(12)]
    Reconstructions(tmp_path / "samples", n=12).on_validation_batch_end(trainer(), module, None, batch, 0)
    picture = Image.open(tmp_path / "samples" / "step_0000003.png")
    assert picture.width > 2 * picture.height  # three rows of twelve


def test_pictures_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"callbacks\.reconstructions\.n=0"):
        Reconstructions(tmp_path, n=0)
