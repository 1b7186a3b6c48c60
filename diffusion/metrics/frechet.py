"""How far apart two sets of images are, by their features."""

from __future__ import annotations

from torch import Tensor, nn

from diffusion.errors import UserError


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features (N, E) and (M, E), in float64; 0 or more.

    m are means and S unbiased covariances of Gaussians fitted to the features (Fréchet 1957; Heusel et al. 2017,
    eq. 6). The estimate is too high by about E^2 / N for few samples: compare only distances of the same N and M.
    Raises UserError for fewer than two samples.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    for features in (features_a, features_b):
        if len(features) < 2:
            raise UserError(f"a Fréchet distance of {len(features)} images: it needs at least 2 on either side")
    # The features are given: torchmetrics is to take them as they are.
    network = nn.Identity()
    network.num_features = features_a.shape[1]
    metric = FrechetInceptionDistance(feature=network).to(features_a.device)
    # torchmetrics subtracts squares of means from means of squares, which a mean far from zero would drown.
    middle = features_a.double().mean(0)
    metric.update(features_a.double() - middle, real=True)
    metric.update(features_b.double() - middle, real=False)
    return max(0.0, float(metric.compute()))
