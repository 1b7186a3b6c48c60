"""The classifier's step depends on seed, step and place alone, and its loss is the likelihood of the labels."""

from types import SimpleNamespace

import pytest
import torch
from torchmetrics import Metric

from datamodules.batch import DataSpec
from diffusion.errors import UserError
from diffusion.modules.noisy import noise_bin_names
from tests.training import built, composed

WORDS = ["experiment=digits_classifier", "accelerator=cpu", "model.network.channels=8", "model.network.dropout=0"]


@pytest.fixture(scope="module")
def config():
    return composed([*WORDS, "augmentation=affine"])


@pytest.fixture
def build(config):
    def make(spec=DataSpec((1, 8, 8), 10), step=3, seed=0):  # noqa: B008
        _, module = built({**config, "seed": seed}, spec, std=0.6)
        torch.manual_seed(0)
        module.network.load_state_dict({k: torch.randn(v.shape) * 0.2 for k, v in module.network.state_dict().items()})
        module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0, global_step=step)
        return module

    return make


def batch_of(n, classes=10, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, 8, 8, generator=rng) * 2 - 1
    return {"image": images, "label": torch.randint(classes, (n,), generator=rng), "id": torch.arange(n)}


def part(batch, places):
    return {name: value[places] for name, value in batch.items()}


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_slices_of_a_batch_have_the_gradient_of_the_whole(build, ranks, accumulate):
    whole, batch = build(), batch_of(32)
    whole.training_step(batch, 0).backward()
    size, sliced = 32 // (ranks * accumulate), build()
    for micro in range(accumulate):
        for rank in range(ranks):
            sliced._trainer = SimpleNamespace(
                accumulate_grad_batches=accumulate, world_size=ranks, global_rank=rank, global_step=3
            )
            first = (micro * ranks + rank) * size
            loss = sliced.training_step(part(batch, slice(first, first + size)), 3 * accumulate + micro)
            (loss / (ranks * accumulate)).backward()
    for a, b in zip(sliced.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_a_step_depends_on_seed_and_step_and_not_on_global_state(build):
    found = {}
    for name, state, keys in (("a", 1, {}), ("b", 2, {}), ("step", 1, {"step": 4}), ("seed", 1, {"seed": 1})):
        module = build(**keys)
        torch.manual_seed(state)
        found[name] = module.training_step(batch_of(16), 0).item()
    assert found["a"] == found["b"] and len(set(found.values())) == 3


def test_the_loss_is_the_cross_entropy_of_the_noisy_images(build, monkeypatch):
    """Recomputed from the noisy images that the network is shown."""
    module, batch, seen = build(), batch_of(16), []
    module.augmentation = None
    module.network.register_forward_hook(lambda _, given, logits: seen.append((*given, logits)))
    loss = module.training_step(batch, 0)
    ((x, c_noise, logits),) = seen
    wanted = -logits.log_softmax(1)[torch.arange(16), batch["label"]].mean()
    torch.testing.assert_close(loss, wanted)
    sigma = torch.exp(4 * c_noise)[:, None, None, None]  # edm: alpha = 1
    noise = (x * (0.6**2 + sigma**2).sqrt() - batch["image"]) / sigma
    large = c_noise > 0  # where the division is harmless
    assert large.sum() > 4 and 0.8 < noise[large].std() < 1.2 and noise[large].mean().abs() < 0.2


def validated(module, batch):
    logged = {}

    def log(name, value, **_):
        logged[name] = value.compute().item() if isinstance(value, Metric) else value.item()

    module.log = log
    module.eval()
    with torch.no_grad():
        module.validation_step(batch, 0)
    return logged


def test_validation_is_the_same_whatever_the_step_and_the_seed(build):
    batch = batch_of(64)
    first, second = validated(build(step=1), batch), validated(build(step=9, seed=0), batch)
    assert str(first) == str(second)
    assert {"val/loss", "val/accuracy"} | {f"accuracy_by_noise/{name}" for name in noise_bin_names()} == set(first)
    assert 0 <= first["val/accuracy"] <= 1


def test_several_labels_an_image(build):
    module, batch = build(DataSpec((1, 8, 8), 3, multi_label=True)), batch_of(16)
    batch["label"] = (torch.rand(16, 3, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    assert torch.isfinite(module.training_step(batch, 0)) and 0 <= validated(module, batch)["val/accuracy"] <= 1


def test_what_cannot_be_trained_is_refused(config):
    with pytest.raises(UserError, match="no labels"):
        built(config, DataSpec((1, 8, 8), None), std=0.6)
    with pytest.raises(UserError, match="a classifier needs one that is fixed"):
        built(composed([*WORDS, "scheduler=learned"]), DataSpec((1, 8, 8), 10), std=0.6)
