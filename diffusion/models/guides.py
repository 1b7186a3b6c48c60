"""The networks beside its own by which a model is guided.

A guide's node is inside that of its guidance, under the name of the argument that takes it: `weak: {_target_: ...}`.
Its target is called with the model, the data's spec, the run's weights and the node's keys. While the run trains there
are no weights; a guide that is made of them is then None.
"""

from __future__ import annotations

from datamodules.batch import DataSpec
from diffusion.averages import exponent
from diffusion.denoiser import Denoiser
from diffusion.errors import UserError
from diffusion.models.base import Weights
from diffusion.models.diffusion import Diffusion


def earlier(
    model: Diffusion, spec: DataSpec, weights: Weights | None, at: float = 0.25, ema: float = 0.1
) -> Denoiser | None:
    """The model as it was after the share `at` of its training steps, its weights averaged over the length `ema`.

    Raises UserError for values out of range, and where the run has kept no snapshots of its averages.
    """
    if not isinstance(at, (int, float)) or not 0 < at <= 1:
        raise UserError(f"guidance.weak.at={at}: give a share of the training, above 0, up to 1")
    exponent(ema)
    if weights is None:
        return None
    return model.trained_denoiser(spec, weights(length=ema, at=at))
