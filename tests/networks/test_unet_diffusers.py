"""The U-Net of diffusers as a network here: its timesteps, classes and shapes, and weights of others to begin from."""

import shutil
import sys

import pytest
import torch

from diffusion.denoiser import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.networks import UNetDiffusers
from diffusion.parameterizations import V
from diffusion.schedulers import Cosine, Linear, Table, ZeroTerminal
from tests.analytic import randomise

diffusers = pytest.importorskip("diffusers")
C_NOISE = torch.tensor([-0.3, 0.4])
SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_size": 4, "head_channels": 4}


def make(size=(8, 8), channels=1, classes=None, **options) -> UNetDiffusers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(UNetDiffusers(channels, channels, size, classes, **SMALL | options)).eval()


def image(size=(8, 8), channels=1, count=2) -> torch.Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rows", [1000, 50])
@pytest.mark.parametrize("table", [None, Table(), Linear(), Cosine(), ZeroTerminal()])
def test_rows_of_the_schedule_are_the_timesteps(table, rows):
    """Exactly, through float32 c_noise; and between the rows, before the first and after the last they rise."""
    network, scheduler = make(table=table, rows=rows), table or Table()

    def timesteps(t):
        return network.timesteps(V()(scheduler.alpha(t), scheduler.sigma(t)).noise.float())

    t = torch.arange(1, rows + 1, dtype=torch.float64) / rows
    assert torch.equal(timesteps(t), torch.arange(rows).float())
    fine = timesteps(torch.linspace(0.1, 1, 4001, dtype=torch.float64) / rows)
    assert (fine.diff() > 0).any() and (fine.diff() >= 0).all() and fine[0] > -1 and fine[-1] == 0
    between = timesteps((t[:-1] + t[1:]) / 2)
    assert ((between > torch.arange(rows - 1)) & (between < torch.arange(1, rows))).all()


@torch.no_grad()
def test_it_answers_as_the_library_does():
    network, x = make(classes=3), image()
    told = {"label": torch.tensor([2, 0]), "drop": torch.tensor([False, True])}
    theirs = network.unet(x, network.timesteps(C_NOISE), torch.tensor([2, 3])).sample
    assert torch.equal(network(x, C_NOISE, told), theirs)
    assert torch.equal(network(x, C_NOISE), network.unet(x, network.timesteps(C_NOISE), torch.tensor([3, 3])).sample)
    assert theirs.std() > 1e-3 and not torch.equal(network(x, C_NOISE), theirs)


def test_an_untrained_one_answers_zero():
    network = UNetDiffusers(1, 2, (8, 8), **SMALL)
    assert torch.equal(network(image(), C_NOISE), torch.zeros(2, 2, 8, 8))


@pytest.mark.parametrize(("size", "channels"), [((13, 17), 3), ((8, 12), 1), ((3, 2), 4)])
def test_shapes(size, channels):
    answer = make(size, channels)(image(size, channels), C_NOISE)
    assert answer.shape == (2, channels, *size) and answer.std() > 1e-3


def test_attention_is_where_the_keys_say():
    kinds = make((16, 16), multipliers=(1, 1, 2)).unet.config.down_block_types
    assert kinds == ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"]
    network = make(attention_size=0)
    assert not any("Attn" in kind for kind in network.unet.config.up_block_types)
    assert not network.unet.mid_block.attentions[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (8, 8, 8)}, "2-D, and the images are 8x8x8"),
        ({"augmentation": 3}, "augmentation.told=false"),
        ({"rows": 1}, "network.rows=1"),
        ({"head_channels": 3}, "head_channels=3 does not divide 16"),
        ({"multipliers": ()}, "network.multipliers"),
        ({"size": (8, 1)}, "8x1 cannot be halved 1 times"),
        ({"blocks": 0}, "network.blocks=0"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        make(**options)


def test_several_classes_at_once_are_refused():
    with pytest.raises(UserError, match=r"model.condition=\[\]"):
        make(classes=3)(image(), C_NOISE, {"label": torch.ones(2, 3)})


def test_without_the_library_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r'pip install "diffusers>=0.35"'):
        make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A U-Net that the keys here cannot describe, saved as the library does, alone and in a pipeline."""
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 24),
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
        freq_shift=1,
        flip_sin_to_cos=False,
        num_class_embeds=4,
        attention_head_dim=None,
    )
    path = tmp_path_factory.mktemp("pretrained")
    randomise(theirs).save_pretrained(path / "pipeline" / "unet")
    shutil.copytree(path / "pipeline" / "unet", path / "alone")
    return path


@pytest.mark.parametrize("place", ["alone", "pipeline"])
@torch.no_grad()
def test_weights_of_others_are_begun_from(folder, place):
    theirs = diffusers.UNet2DModel.from_pretrained(folder / "alone", low_cpu_mem_usage=False).eval()
    network = UNetDiffusers(1, 1, (8, 8), 3, pretrained=str(folder / place)).eval()
    x, label = image(), torch.tensor([0, 2])
    scheduler, t = Table(), torch.tensor([0.001, 0.7], dtype=torch.float64)
    denoiser = NetworkDenoiser(scheduler, V(scale_input=False), network)
    answer, _ = denoiser.raw(x, denoiser.coefficients(t)[2], {"label": label})
    torch.testing.assert_close(answer, theirs(x, torch.tensor([0, 699]), label).sample, rtol=1e-5, atol=1e-5)

    architecture = UNetDiffusers.architecture_of(str(folder / place))
    again = UNetDiffusers(1, 1, (8, 8), 3, architecture=architecture).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x, C_NOISE), network(x, C_NOISE))


@pytest.mark.parametrize(
    ("channels", "classes", "said"),
    [
        (3, 3, "in_channels is 1, and 3 is needed; out_channels is 1, and 3 is needed"),
        (1, 10, r"num_class_embeds is 4, and 11 is needed \(the classes of the data, and one for no label\)"),
        (1, None, "num_class_embeds is 4, and None is needed"),
    ],
)
def test_weights_of_another_shape_are_refused(folder, channels, classes, said):
    with pytest.raises(UserError, match=said) as caught:
        UNetDiffusers(channels, channels, (8, 8), classes, pretrained=str(folder / "alone"))
    assert "\n" not in str(caught.value) and str(folder / "alone") in str(caught.value)


def test_what_holds_no_unet_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"the U-Net .* could not be loaded"):
        UNetDiffusers(1, 1, (8, 8), pretrained=str(tmp_path))
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"could not be loaded|holds"):
        UNetDiffusers(1, 1, (8, 8), pretrained=str(tmp_path))
