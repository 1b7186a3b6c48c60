"""A network that is used and never trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Frozen(nn.Module):
    """Holds a network that goes where its owner goes, but is no part of it.

    The network moves and changes its dtype with the owner; it is in evaluation mode without gradients from here on,
    and appears in none of the owner's parameters(), buffers(), modules() and state_dict().
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        # In a tuple, because a module that is an attribute of its own would be registered.
        self._held = (network.eval().requires_grad_(False),)

    @property
    def network(self) -> nn.Module:
        return self._held[0]

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.network(*args, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        super()._apply(fn, recurse)
        self.network._apply(fn, recurse)
        return self
