"""A module that trains without a Trainer, and records what its steps drew."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torchmetrics import Metric

from datamodules.batch import DataSpec
from tests.training import SMALL, built, composed


class Recorded:
    """An objective that notes the times, noise and conditions of each call."""

    def __init__(self, objective):
        self.objective, self.calls = objective, []

    def time(self, u, scheduler):
        return self.objective.time(u, scheduler)

    def loss(self, denoiser, x0, noise, t, cond):
        self.calls.append({"time": t, "noise": noise, **cond})
        return self.objective.loss(denoiser, x0, noise, t, cond)


@pytest.fixture(scope="session")
def config():
    return composed([*SMALL, "network.dropout=0", "augmentation=affine"])


@pytest.fixture
def build(config):
    """A function that builds a module with a stub trainer, which tests set to a step, rank and accumulation."""

    def make(spec=DataSpec((1, 8, 8), 10), std=0.6, **changes):  # noqa: B008
        changed = OmegaConf.merge(config, OmegaConf.from_dotlist([f"{k}={v}" for k, v in changes.items()]))
        _, module = built(changed, spec, std)
        module._trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0, global_step=0)
        module.objective = Recorded(module.objective)
        module.logged = []

        def log(name, value, batch_size, **_):
            if isinstance(value, Metric):  # computed and reset at once, as at the end of a validation of one batch
                logged = (name, value.compute().item(), value.weight.item())
                value.reset()
                module.logged += [logged] if logged[2] else []
            else:
                module.logged.append((name, value.item(), batch_size))

        module.log = log
        # The output layer starts at zero, which would hide everything below it.
        with torch.no_grad():
            for i, p in enumerate(module.network.parameters()):
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        return module

    return make
