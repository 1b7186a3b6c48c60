"""All that features tell of generated images beside real ones."""

from __future__ import annotations

from torch import Tensor

from diffusion.errors import UserError
from diffusion.metrics.bootstrap import Estimate
from diffusion.metrics.frechet import frechet_estimate
from diffusion.metrics.kernel import kernel_estimate
from diffusion.metrics.manifold import manifold_estimates

FEATURE_METRICS = ("fid", "kid", "precision", "recall", "density", "coverage")
SIDES = {"precision": (0,), "density": (0,), "recall": (1,), "coverage": (1,)}
"""The set, generated (0) or real (1), over whose images a metric is a mean; the others depend on both."""


def compared(
    generated: Tensor, real: Tensor, classes: tuple[Tensor | None, Tensor | None] = (None, None)
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """The metrics of `FEATURE_METRICS` of features generated (N, E) and real (M, E), and why some are left out.

    fid and kid carry the field's names for the Fréchet and the kernel distance, whatever network the features are of.
    classes: of the generated and of the real images, (N,) and (M,), where the numbers of each are no chance: see
    `Estimate.within`.
    """
    found, left_out = {}, {}
    fewest, size = min(len(generated), len(real)), generated.shape[1]
    if fewest > size:
        found["fid"] = frechet_estimate(generated, real)
    else:
        left_out["fid"] = f"a covariance of {size} features takes more images than {fewest}"
    try:
        found["kid"] = kernel_estimate(generated, real)
    except UserError as error:
        left_out["kid"] = str(error)
    try:
        found |= manifold_estimates(generated.cpu().numpy(), real.cpu().numpy())
    except UserError as error:
        left_out |= {name: str(error) for name in FEATURE_METRICS if name not in found | left_out}
    return {
        name: each.within(*(classes[side] for side in SIDES.get(name, (0, 1)))) for name, each in found.items()
    }, left_out
