"""What a GPU is given on the way, the host does not wait for; seen without a GPU, by tensors that hold no numbers."""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodules.batch import DataSpec
from diffusion.devices import to_device
from diffusion.random import SampleNoise
from tests.training import SMALL, built, composed

SPEC = DataSpec(shape=(3, 16, 16), classes=4)


class Gpu(TorchDispatchMode):
    """A GPU on which nothing is computed, and what it is sent.

    Counts the copies from the host to it, and the waits: copies that the host waits for, and questions about values.
    """

    def __init__(self):
        super().__init__()
        self.copies, self.waits = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default) and args[0].is_cuda:
            self.waits.append(func)
        if func is torch.ops.aten._to_copy.default:
            sent, asked = not args[0].is_cuda and there, args[0].is_cuda and "device" in kwargs and not there
            self.copies += sent
            if asked or (sent and not kwargs.get("non_blocking")):
                self.waits.append((args[0].device, tuple(args[0].shape)))
        held = [value for value in tree_leaves((args, kwargs)) if isinstance(value, FakeTensor)]
        with nullcontext() if there or held else unset_fake_temporarily():  # the host computes as ever
            return func(*args, **kwargs)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with FakeTensorMode(allow_non_fake_inputs=True), Gpu() as gpu:
        yield gpu
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def batch(count: int) -> dict[str, torch.Tensor]:
    label = torch.zeros(count, dtype=torch.long, device="cuda")
    return {"image": torch.zeros(count, *SPEC.shape, device="cuda"), "label": label}


def test_a_plain_copy_is_a_wait(gpu):
    torch.zeros(3).to("cuda")
    assert len(gpu.waits) == gpu.copies == 1
    there = to_device(torch.zeros(3, dtype=torch.float64), "cuda", torch.float32)
    assert (len(gpu.waits), gpu.copies) == (1, 2)
    there.cpu()
    assert len(gpu.waits) == 2


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["objective=simple", "parameterization=eps", "scheduler=cosine"],
        ["objective=edm_hybrid"],
        ["objective=min_snr", "parameterization=v", "scheduler=cosine"],
    ],
)
def test_of_a_loss(gpu, words):
    _, module = built(composed([*SMALL, *words]), SPEC, std=0.5)
    t = torch.rand(4, dtype=torch.float64) * 0.9 + 0.05
    given, noise = batch(4), torch.zeros(4, *SPEC.shape, device="cuda")
    cond = {"label": given["label"], "drop": torch.zeros(4, dtype=torch.bool, device="cuda")}
    module.to("cuda")
    gpu.waits.clear()
    loss = module.objective.loss(module.denoiser, given["image"], noise, t, cond)
    assert loss.is_cuda and gpu.copies > 5 and not gpu.waits


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", ["affine", "dihedral", "edm", "elastic", "flips", "histology", "intensity"])
def test_of_augmentation(gpu, augmentation):
    _, module = built(composed([*SMALL, f"augmentation={augmentation}"]), SPEC, std=0.5)
    draws = to_device(torch.randn(4, module.augmentation.draws), "cuda")
    images, _ = module.augmentation(batch(4)["image"], draws)
    assert images.is_cuda and gpu.copies > 0 and not gpu.waits


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["none", "classifier_free"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_of_sampling(gpu, sampler, guidance):
    config = composed([*SMALL, f"sampler={sampler}", f"guidance={guidance}", "grid.steps=4"])
    model, module = built(config, SPEC, std=0.5)
    generative = model.sampled(module.denoiser.eval(), SPEC)
    grid = generative.grid(module.denoiser.scheduler)
    given = batch(2)
    generative.denoiser.to("cuda")
    gpu.waits.clear()
    rng = SampleNoise([0, 1], "cuda")
    with torch.no_grad():
        x = generative.sampler(generative.denoiser, given["image"], grid, {"label": given["label"]}, rng=rng)
    assert x.is_cuda and gpu.copies > 5 and not gpu.waits
