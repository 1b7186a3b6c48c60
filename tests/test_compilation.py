"""What torch.compile makes of the networks is what they are, by the same names, and is not made anew for each size."""

import shutil

import numpy as np
import pytest
import torch
from torch._inductor import compile_fx, config

from diffusion.compilation import compiled
from diffusion.errors import UserError
from diffusion.networks import UNet
from tests.analytic import randomise
from tests.training import OFTEN, assert_same_run, losses, run_training

pytestmark = pytest.mark.slow


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch makes of the networks are run as they are: to generate code for a CPU takes minutes."""
    from torch._dynamo.backends.debugging import aot_eager

    found = []

    def run_as_it_is(graph, inputs, **options):
        found.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(compile_fx, "compile_fx", run_as_it_is)
    return found


@pytest.fixture
def network():
    network = UNet(1, 1, (8, 8), classes=3, channels=8, multipliers=(1, 2), blocks=1, attention_size=4)
    randomise(network)
    return network


def inputs(count: int):
    generator = torch.Generator().manual_seed(count)
    x, noise = torch.randn(count, 1, 8, 8, generator=generator), torch.randn(count, generator=generator)
    return x, noise, {"label": torch.arange(count) % 3, "drop": torch.arange(count) % 2 == 0}


def test_batches_of_many_sizes_are_compiled_twice_and_one_image_once_more(network, graphs):
    wanted = {count: network(*inputs(count)) for count in (4, 7, 5, 9, 1)}
    names = list(network.state_dict())
    with compiled([network], "default", "compile"), torch.no_grad():
        for count, answer in wanted.items():
            torch.testing.assert_close(network(*inputs(count)), answer, rtol=0, atol=1e-4)
            assert len(graphs) == {4: 1, 1: 3}.get(count, 2)
    assert list(network.state_dict()) == names
    network(*inputs(11))
    assert len(graphs) == 3  # out of the context it is as it was


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, for the code that torch writes")
def test_the_code_that_torch_writes_is_the_network():
    network = UNet(1, 1, (8, 8), classes=3, channels=8, multipliers=(1,), blocks=1, attention_size=0)
    randomise(network)
    with torch.no_grad():
        wanted = network(*inputs(4))
        with compiled([network], "reduce-overhead", "compile"):
            torch.testing.assert_close(network(*inputs(4)), wanted, rtol=0, atol=1e-4)


def test_gradients_are_those_of_the_network(network, graphs):
    found = []
    for mode in (None, "default"):
        with compiled([network], mode, "compile"):
            network.zero_grad()
            network(*inputs(4)).square().sum().backward()
            found.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name, wanted in found[0].items():
        assert (found[1][name] - wanted).norm() <= 1e-4 * (1 + wanted.norm()), name


@config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
def test_a_system_that_cannot_compile_is_told_in_one_line():
    network = torch.nn.SiLU()
    with pytest.raises(UserError) as caught, compiled([network], "default", "accelerator.compile"):
        network(torch.ones(2, 2))
    said = str(caught.value)
    assert said.startswith("accelerator.compile=default: torch cannot compile") and "leave it out" in said
    assert "\n" not in said


def test_other_errors_pass(network, graphs):
    with pytest.raises(RuntimeError, match="3 channels"), compiled([network], "default", "compile"):
        network(torch.randn(2, 3, 8, 8), torch.randn(2), None)


def test_a_compiled_run_goes_on_to_the_bit_and_is_sampled(tmp_path, graphs):
    from diffusion.apps import tasks

    small = [*OFTEN, "network.multipliers=[1]", "network.attention_size=0"]
    words = [*small, "accelerator=cpu", "accelerator.compile=default"]
    whole = run_training(tmp_path / "whole", *words, "trainer.max_steps=8")
    trained = len(graphs)
    assert trained > 0
    run_training(tmp_path / "parts", *words, "trainer.max_steps=4")
    assert_same_run(run_training(tmp_path / "parts", *words, "trainer.max_steps=8"), whole)
    assert len(graphs) == 3 * trained
    plain = run_training(tmp_path / "plain", *small, "trainer.max_steps=8")
    assert len(graphs) == 3 * trained
    for row, other in zip(losses(whole), losses(plain), strict=True):
        assert float(row["train/loss"] or 0) == pytest.approx(float(other["train/loss"] or 0), rel=1e-3)
    made = {}
    for name, compile_ in {"compiled": "default", "as it is": "null"}.items():
        before = len(graphs)
        tasks.main(["sample", f"run={whole}", "n=6", "batch_size=4", f"compile={compile_}", f"out={tmp_path / name}"])
        made[name] = len(graphs) - before
    assert made["compiled"] > 0 == made["as it is"]
    images = [np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in ("compiled", "as it is")]
    assert np.abs(images[0] - images[1]).max() <= 1
