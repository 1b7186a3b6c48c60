"""control=canny, hough and scribbles: lines that are drawn from an image."""

from __future__ import annotations

import numpy as np

from datamodules.batch import DataSpec
from diffusion.controls.base import Edges
from diffusion.errors import UserError


class Canny(Edges):
    """Canny's edges of the grey image, smoothed by `sigma` pixels. Source: Canny 1986, as scikit-image has it."""

    def __init__(self, spec: DataSpec, sigma: float = 1.0):
        super().__init__(spec)
        if not sigma > 0:
            raise UserError(f"control.sigma={sigma}: give the pixels by which the image is smoothed, above 0")
        self.sigma = sigma

    def lines(self, grey: np.ndarray) -> np.ndarray:
        from skimage.feature import canny

        return canny(grey, sigma=self.sigma)


class Scribbles(Canny):
    """Canny's edges of a strongly smoothed image, as by a thick pen: `width` pixels to each side."""

    def __init__(self, spec: DataSpec, sigma: float = 2.0, width: int = 1):
        super().__init__(spec, sigma)
        if type(width) is not int or width < 1:
            raise UserError(f"control.width={width}: give pixels, 1 or more")
        self.width = width

    def lines(self, grey: np.ndarray) -> np.ndarray:
        from scipy.ndimage import binary_dilation

        return binary_dilation(super().lines(grey), iterations=self.width)


class Hough(Canny):
    """Straight pieces of Canny's edges, of at least `length` pixels.

    Found by the probabilistic Hough transform, with a seed that never changes. Source: Galamhos et al. 1999, as
    scikit-image has it.
    """

    def __init__(self, spec: DataSpec, sigma: float = 1.0, length: int = 5, gap: int = 1):
        super().__init__(spec, sigma)
        if length < 1 or gap < 0:
            raise UserError(f"control.length={length} control.gap={gap}: give pixels, a length of at least 1")
        self.length, self.gap = length, gap

    def lines(self, grey: np.ndarray) -> np.ndarray:
        from skimage.draw import line
        from skimage.transform import probabilistic_hough_line

        drawn = np.zeros(grey.shape, bool)
        edges = super().lines(grey)
        for (x0, y0), (x1, y1) in probabilistic_hough_line(
            edges, threshold=self.length, line_length=self.length, line_gap=self.gap, rng=0
        ):
            drawn[line(y0, x0, y1, x1)] = True
        return drawn
