"""What every choice of the group `guidance` is."""

from __future__ import annotations

from diffusion.denoiser import Denoiser


class Guidance(Denoiser):
    """Wraps a denoiser, its first argument, and is one: samplers do not know that they are guided.

    Other networks that it takes are given to it, under names of their own. In its yaml such a name is a node, whose
    target makes the network of (model, spec, weights): see `diffusion.models.guides`.
    """

    asks = False
    """Whether it leads towards a class by itself, so that a model that is told none can be asked for one."""

    @classmethod
    def lacks(cls, classes: int | None, label_dropout: float) -> str | None:
        """What a model lacks to be guided so, in one line, or None where it lacks nothing.

        classes: that its network is told, or None; label_dropout: share of samples trained without their class.
        """
        return None
