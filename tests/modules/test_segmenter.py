"""The segmenter's step depends on seed, step and place alone, and augmentation moves masks with images."""

from types import SimpleNamespace

import pytest
import torch

from datamodules.batch import DataSpec
from diffusion.errors import UserError
from diffusion.metrics.segmentation import confusion, dice_of
from diffusion.objectives import segmentation_loss
from tests.training import built, composed

WORDS = ["model=segmenter", "network=tiny", "network.channels=8", "network.dropout=0", "accelerator=cpu"]
SPEC = DataSpec((1, 8, 8), None, mask_classes=3)


@pytest.fixture(scope="module")
def config():
    return composed([*WORDS, "augmentation=dihedral"])


@pytest.fixture
def build(config):
    def make(step=3, seed=0):
        _, module = built({**config, "seed": seed}, SPEC, std=0.6)
        torch.manual_seed(0)
        module.network.load_state_dict({k: torch.randn(v.shape) * 0.2 for k, v in module.network.state_dict().items()})
        module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0, global_step=step)
        return module

    return make


def batch_of(n):
    rng = torch.Generator().manual_seed(0)
    masks = torch.randint(3, (n, 1, 8, 8), generator=rng).float()
    return {"image": masks - 1, "mask": masks, "id": torch.arange(n)}


def test_slices_of_a_batch_have_the_gradient_of_the_whole(build):
    whole, batch, sliced = build(), batch_of(16), build()
    whole.training_step(batch, 0).backward()
    for rank in range(2):
        sliced._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=2, global_rank=rank, global_step=3)
        part = {key: value[8 * rank : 8 * rank + 8] for key, value in batch.items()}
        (sliced.training_step(part, 3) / 2).backward()
    for a, b in zip(sliced.network.parameters(), whole.network.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_masks_move_with_the_images_and_no_two_steps_alike(build, monkeypatch):
    """Each image shows its own mask, so what the network sees says which mask the loss must be of."""
    seen = []

    def loss(logits, masks, dice):
        seen.append(masks)
        return segmentation_loss(logits, masks, dice)

    monkeypatch.setattr("diffusion.modules.segmenter.segmentation_loss", loss)
    shown, found = [], {}
    for name, keys in (("a", {}), ("b", {}), ("step", {"step": 4}), ("seed", {"seed": 1})):
        module = build(**keys)
        module.network.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
        found[name] = module.training_step(batch_of(8), 0).item()
    assert all(torch.equal(mask, image + 1) for mask, image in zip(seen, shown, strict=True))
    assert not torch.equal(seen[0], batch_of(8)["mask"])
    assert found["a"] == found["b"] and len(set(found.values())) == 3


def test_validation_is_of_the_data_as_they_are(build):
    module, batch, logged = build(), batch_of(8), {}
    module.log = lambda name, value, **_: logged.update({name: value.item()})
    with torch.no_grad():
        module.validation_step(batch, 0)
        logits = module.segmenter.logits(batch["image"])
    dice = dice_of(confusion(logits.argmax(1), batch["mask"][:, 0], 3))[:, 1:].mean()
    assert logged["val/dice"] == pytest.approx(dice.item())
    assert logged["val/loss"] == pytest.approx(segmentation_loss(logits, batch["mask"], 1.0).mean().item())


def test_what_cannot_be_trained_is_refused(config):
    with pytest.raises(UserError, match="the data have no masks"):
        built(config, DataSpec((1, 8, 8), 4), std=0.6)
    with pytest.raises(UserError, match=r"model\.dice=-1"):
        built(composed([*WORDS, "model.dice=-1"]), SPEC, std=0.6)


def test_volumes_have_a_logit_for_each_class_and_voxel(config):
    _, module = built(config, DataSpec((2, 4, 8, 8), None, mask_classes=4), std=0.6)
    assert module.segmenter.logits(torch.zeros(1, 2, 4, 8, 8)).shape == (1, 4, 4, 8, 8)
