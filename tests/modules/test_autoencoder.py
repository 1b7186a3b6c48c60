"""The autoencoder's step: each network gets the gradient of its own loss, and the noise depends on named keys alone."""

from types import SimpleNamespace

import pytest
import torch

from diffusion.errors import UserError
from diffusion.modules import AutoencoderModule
from diffusion.networks import Autoencoder, Gaussian, PatchDiscriminator
from diffusion.objectives import ReconstructionLoss, adaptive_weight, hinge_discriminator, hinge_generator

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(**loss):
    torch.manual_seed(0)
    module = AutoencoderModule(
        network=Autoencoder(1, (8, 8), Gaussian, channels=4, multipliers=(1, 2)),
        loss=ReconstructionLoss(**{"adversarial_start": 2, **loss}),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        discriminator=PatchDiscriminator(1, (8, 8), channels=4),
    )
    module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0, global_step=5)
    return module


def gradients(network):
    return [p.grad.clone() for p in network.parameters()]


def test_the_sum_gives_each_network_the_gradient_of_its_own_loss():
    module = build(adversarial=0.3, penalty=1e-3)
    module.training_step({"image": IMAGES}, 0)["loss"].backward()
    found = gradients(module.network), gradients(module.discriminator)

    # Two separate losses, each with the other network held constant by requires_grad.
    noise = {}
    original = module.network.bottleneck.draw
    module.network.bottleneck.draw = lambda moments, rng: original(
        moments, lambda shape: noise.setdefault("z", rng(shape))
    )
    module.zero_grad()
    module.training_step({"image": IMAGES}, 0)
    module.zero_grad()
    module.discriminator.requires_grad_(False)
    answer = module.network(IMAGES, lambda shape: noise["z"])
    squared, penalty = (answer.images - IMAGES).square().mean(), answer.penalty.mean()
    fooled = hinge_generator(module.discriminator(answer.images))
    weight = adaptive_weight(squared, fooled, module.network.last_layer)
    (squared + 1e-3 * penalty + 0.3 * weight * fooled).backward()
    module.discriminator.requires_grad_(True)
    hinge_discriminator(module.discriminator(IMAGES), module.discriminator(answer.images.detach())).backward()
    for a, b in zip(
        [*found[0], *found[1]], [*gradients(module.network), *gradients(module.discriminator)], strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_before_its_step_the_discriminator_has_no_gradient_and_costs_nothing():
    module = build()
    module._trainer.global_step = 1
    found = module.training_step({"image": IMAGES}, 0)
    found["loss"].backward()
    assert all(p.grad is None for p in module.discriminator.parameters())
    assert torch.equal(found["loss"].detach(), found["terms"]["loss"])


def test_what_is_logged_as_the_loss_is_without_the_discriminator():
    found = build(penalty=0.5).training_step({"image": IMAGES}, 0)["terms"]
    torch.testing.assert_close(found["loss"], found["distance"] + 0.5 * found["penalty"])
    assert {"generator", "discriminator", "adaptive_weight", "kl"} <= set(found)


def test_a_step_depends_on_seed_and_step_alone():
    losses = []
    for global_seed, step in ((1, 5), (2, 5), (1, 6)):
        module = build()
        torch.manual_seed(global_seed)
        module._trainer.global_step = step
        losses.append(module.training_step({"image": IMAGES}, 0)["loss"].detach())
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_one_optimizer_holds_both_networks_and_each_is_clipped_by_itself():
    module = build()
    optimizer = module.configure_optimizers()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters()}
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    module.configure_gradient_clipping(optimizer, gradient_clip_val=1.0)
    for network in (module.network, module.discriminator):
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients(network)]))
        torch.testing.assert_close(norm, torch.tensor(1.0), rtol=1e-4, atol=0)


def test_validation_logs_the_psnr_of_the_clipped_images():
    module, logged = build().eval(), {}
    module.log = lambda name, value, **_: logged.update({name: value})
    with torch.no_grad():
        module.validation_step({"image": IMAGES, "id": torch.arange(len(IMAGES))}, 0)
        found = module.network(IMAGES, None).images.clamp(-1, 1)
    mse = ((found - IMAGES) / 2).square().flatten(1).mean(1)
    torch.testing.assert_close(logged["val/psnr"], (-10 * mse.log10()).mean())
    assert {"val/loss", "val/distance", "val/kl"} <= set(logged)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_distance_is_the_mean_of_the_powers(power):
    terms = ReconstructionLoss(power=power).terms(
        IMAGES, SimpleNamespace(images=IMAGES - 0.5, penalty=torch.tensor([1.0, 3.0])), None
    )
    torch.testing.assert_close(terms["distance"], torch.tensor(0.5**power))
    assert terms["penalty"] == 2 and ReconstructionLoss(power=power, penalty=0.25).total(terms) == 0.5**power + 0.5


def test_a_perceptual_distance_is_weighed_and_not_trained():
    module = build(perceptual=0.5)
    calls = []

    class Distance(torch.nn.Linear):
        def forward(self, a, b):
            calls.append((a, b))
            return (a - b).square().flatten(1).sum(1)

    module = AutoencoderModule(module.network, module.loss, module.optimizer, perceptual=Distance(1, 1))
    module._trainer = build()._trainer
    found = module.training_step({"image": IMAGES}, 0)
    torch.testing.assert_close(
        found["terms"]["loss"],
        found["terms"]["distance"] + 1e-5 * found["terms"]["penalty"] + 0.5 * found["terms"]["perceptual"],
    )
    assert torch.equal(calls[0][0], IMAGES) and not any("perceptual" in name for name in module.state_dict())


@pytest.mark.parametrize("key", ["power", "penalty", "perceptual", "adversarial", "adversarial_start"])
def test_weights_out_of_range_are_refused(key):
    with pytest.raises(UserError, match=rf"model\.loss\.{key}=-1"):
        ReconstructionLoss(**{key: -1})
