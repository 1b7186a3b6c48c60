"""A batch that does not fit into memory is trained on in parts, and makes the run that fits."""

import pytest
import torch

from diffusion.apps.parts import is_out_of_memory
from diffusion.errors import UserError
from diffusion.networks import UNet
from tests.training import assert_same_run, losses, run_training, state

PLAN = ["trainer.max_steps=4", "trainer.validate_every_n_steps=4", "trainer.log_every_n_steps=1", "network.dropout=0"]
PLAN += ["callbacks.previews.every_n_steps=100", "batch_size=16"]


@pytest.fixture
def room(monkeypatch):
    """A function that gives the U-Net, where it learns or where not, room for so many images, from its n-th pass on."""
    forward = UNet.forward

    def make(images: int, error: Exception, after: int = 0, learning: bool = True) -> None:
        passes = []

        def limited(self, x, *args):
            passes.append(len(x))
            if torch.is_grad_enabled() is learning and len(x) > images and len(passes) > after:
                raise error
            return forward(self, x, *args)

        monkeypatch.setattr(UNet, "forward", limited)

    yield make


OF_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
OF_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 12 (Cannot ...)")


@pytest.mark.slow
@pytest.mark.parametrize("error", [OF_GPU, OF_CPU], ids=["gpu", "cpu"])
def test_the_parts_that_fit_are_found(tmp_path, room, error):
    """The run is that of these parts, to the bit, and that of one part to 1e-5."""
    asked = run_training(tmp_path / "asked", *PLAN, "trainer.accumulate_grad_batches=4")
    whole = run_training(tmp_path / "whole", *PLAN)
    room(5, error)
    found = run_training(tmp_path / "found", *PLAN)
    assert_same_run(found, asked)
    learnt = state(found)
    for name, value in state(whole).items():
        if name.startswith(("weights", "ema")):
            torch.testing.assert_close(learnt[name], value, rtol=0, atol=1e-5, msg=name)
    for row, other in zip(losses(found), losses(whole), strict=True):
        assert float(row["train/loss"] or 0) == pytest.approx(float(other["train/loss"] or 0), abs=1e-5)
    said = [line for line in (found / "train.log").read_text().splitlines() if "does not fit" in line]
    assert [line.split("INFO ")[1] for line in said] == [
        "a batch of 16 does not fit: 2 parts of 8 each",
        "a batch of 8 does not fit: 4 parts of 4 each",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "after", "options", "said"),
    [
        (0, 0, [], "not even one image.*network.checkpointing=true"),
        (4, 0, ["trainer.accumulate_grad_batches=2"], "^8 images at once.*trainer.accumulate_grad_batches=4"),
        (4, 2, [], r"^16 images at once do not fit into memory \(step 2\)"),
    ],
    ids=["nothing fits", "the user's own", "after some steps"],
)
def test_what_cannot_be_mended_is_told(tmp_path, room, images, after, options, said):
    room(images, OF_GPU, after)
    with pytest.raises(UserError, match=said) as caught:
        run_training(tmp_path, *PLAN, *options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_validation_that_does_not_fit_is_not_taken_for_a_step(tmp_path, room):
    room(8, OF_GPU, learning=False)  # previews of 4 images, and validation of 16
    with pytest.raises(UserError, match=r"^validation, of 16 images at once.*\(step 4\).*smaller batch_size"):
        run_training(tmp_path, *PLAN)


def test_other_errors_are_none_of_memory():
    assert is_out_of_memory(OF_GPU) and is_out_of_memory(OF_CPU)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError("out of memory"))
