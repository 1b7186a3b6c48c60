"""How several processes train one network: what accelerator.strategy may be, beside Lightning's own names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden

from diffusion.errors import UserError
from diffusion.processes import dealt_like, whole


class DDP(DDPStrategy):
    """Each process has the whole network, and they average its gradients.

    timeout: minutes that a process waits for the others before it gives up; one that has died without a word is not
        always noticed before.
    find_unused_parameters: for networks of which a part has no gradient in some steps.
    """

    def __init__(self, timeout: float = 10.0, find_unused_parameters: bool = False):
        options = {"find_unused_parameters": find_unused_parameters, "gradient_as_bucket_view": True}
        super().__init__(timeout=timedelta(minutes=timeout), **options)

    def configure_ddp(self) -> None:
        # Alone, the hooks and buckets cost 3% of a small network's step, and average nothing.
        if self.world_size > 1:
            super().configure_ddp()


class FullyShard(ModelParallelStrategy):
    """Each process keeps its share of the weights, their averages, the gradients and the optimizer's state.

    It is torch's `fully_shard` (FSDP2), which the module applies to its network in `configure_model`. Checkpoints hold
    everything whole, as those of every other strategy, so that a run goes on under any.

    timeout: as for `DDP`.
    """

    def __init__(self, timeout: float = 10.0):
        # Networks return a part of what they have padded; nobody writes into it.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timedelta(minutes=timeout))

    def check(self, module: pl.LightningModule) -> None:
        """Raises UserError for a module that has not just a network to deal out."""
        known = is_overridden("configure_model", module)
        if not known or len(list(module.trained.parameters())) != len(list(module.network.parameters())):
            raise UserError(
                "accelerator=gpu_fsdp deals out the network of a diffusion model with a fixed schedule alone; use "
                "accelerator=gpu_ddp"
            )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.world_size
        super().setup_environment()

    # Lightning's own methods number the optimizer's states by another order than its other strategies do, where some
    # parameters do not learn.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        here = self.lightning_module.state_dict()
        there = {name: dealt_like(value, here[name]) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(there, strict=strict)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        content = optimizer.state_dict()
        states = {i: {name: whole(value) for name, value in state.items()} for i, state in content["state"].items()}
        return content | {"state": states}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, content in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            learning = [p for group in optimizer.param_groups for p in group["params"]]
            states = {
                i: {k: dealt_like(v, learning[i]) if v.shape == learning[i].shape else v for k, v in state.items()}
                for i, state in content["state"].items()
            }
            optimizer.load_state_dict(content | {"state": states})
