"""Where things are: flips and quarter turns, which move whole pixels, and all other maps of the plane in one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.augmentations.base import Transform, check_keys, per_image, uniform
from diffusion.augmentations.warp import WIDTH, extent, rotation, smooth_field, stretch, warp
from diffusion.errors import UserError

AXES = {"x": -1, "y": -2, "z": -3}
FOLDS = 0.5
"""Largest displacement that is taken, over the width of its bumps: at 0.5, one bump in 400 folds the image."""
DRAWS_AND_NUMBERS = {
    "quarter_turns": (1, 2),
    "scale": (2, 1),
    "rotation": (1, 2),
    "anisotropy": (2, 2),
    "shift": (3, 2),
}
"""Of each part: how many normal numbers it takes, and by how many it says what it did."""


@dataclass(frozen=True)
class Geometry(Transform):
    """Flips, quarter turns, and an affine map with an elastic displacement about the centre, in the image's plane.

    Each part is done with the given probability, whatever the others do. Flips and quarter turns are exact; the rest
    is one bilinear interpolation, and what comes from outside is the mirror image. Volumes are moved alike in all
    slices, but for a flip along z. Quarter turns and displacements apart, the pipe is that of Karras et al. 2022,
    appendix F.2, table 6; the displacements are those of Ronneberger et al. 2015: random at a few points, smooth
    between.

    told: whether the network is told what was done
    probability: of each part
    flips: axes along which half of the chosen images are mirrored: x, y, and of volumes z (the slices' order)
    quarter_turns: by 0, 90, 180 or 270 degrees, all as likely
    scale: standard deviation of the logarithm of the scale
    rotation: largest angle in radians; uniform up to it, in both directions
    anisotropy: standard deviation of the logarithm by which one direction, any, is stretched and the other one shrunk
    shift: standard deviation along each axis, as a share of that side
    elastic: standard deviation of the displacement of each pixel along each axis, as a share of that side
    elastic_points: control points of the displacement along each side; more of them make smaller bumps

    Raises UserError for values that make no sense, and for a displacement that would fold the image.
    """

    told: bool = False
    probability: float = 1.0
    flips: Sequence[str] = ()
    quarter_turns: bool = False
    scale: float = 0.0
    rotation: float = 0.0
    anisotropy: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    elastic_points: int = 4

    moves = True

    def __post_init__(self):
        names = ("scale", "rotation", "anisotropy", "shift", "elastic")
        check_keys(self.probability, **{name: getattr(self, name) for name in names})
        if len(set(self.flips)) < len(self.flips) or not set(self.flips) <= set(AXES):
            raise UserError(f"augmentation: flips={list(self.flips)}: give some of {', '.join(AXES)}, each once")
        if self.elastic_points < 2:
            raise UserError(f"augmentation: elastic_points={self.elastic_points}: give at least 2")
        largest = FOLDS * WIDTH / (self.elastic_points - 1)
        if self.elastic > largest:
            raise UserError(
                f"augmentation: elastic={self.elastic} with elastic_points={self.elastic_points} folds images over "
                f"themselves: give at most {largest:.3g}, or fewer points"
            )

    @property
    def draws(self) -> int:
        field = 1 + 2 * self.elastic_points**2 if self.elastic else 0
        return len(self.flips) + sum(draws for draws, _ in self._parts()) + field

    @property
    def numbers(self) -> int:
        """A number for each flip; of a turn its two bits; the standard normal number of the scale; cos - 1 and sin of
        the rotation; the stretch as a number times cos and sin of twice its direction; the two standard normal numbers
        of the shift; and 1 for a displacement.
        """
        return len(self.flips) + sum(numbers for _, numbers in self._parts()) + (self.elastic > 0)

    def _parts(self) -> list[tuple[int, int]]:
        return [sizes for name, sizes in DRAWS_AND_NUMBERS.items() if getattr(self, name)]

    def check(self, shape: Sequence[int]) -> None:
        sides = "x".join(map(str, shape[1:]))
        if self.quarter_turns and shape[-1] != shape[-2]:
            raise UserError(
                f"augmentation: quarter turns need square images, and these are {sides}: set quarter_turns=false, or "
                "choose another augmentation"
            )
        if "z" in self.flips and len(shape) < 4:
            raise UserError(f"augmentation: images of {sides} have no z to flip along: give flips of x and y")

    def change(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        numbers = iter(draws.unbind(1))
        images, done = self._moved(images, numbers)
        if any((self.scale, self.rotation, self.anisotropy, self.shift, self.elastic)):
            images, more = self._warped(images, draws, numbers)
            done += more
        return images, torch.stack(done, 1) if done else draws[:, :0]

    def _chosen(self, numbers: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """Who is chosen (B,), and a number for each that is uniform in [0, 1] for those that are."""
        place = uniform(next(numbers))
        return place < self.probability, place / max(self.probability, 1e-12)

    def _moved(self, images: Tensor, numbers: Iterator[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Quarter turns, then flips; and what was done."""
        mirrored = {}
        for axis in self.flips:
            chosen, place = self._chosen(numbers)
            mirrored[AXES[axis]] = chosen & (place < 0.5)
        done = list(mirrored.values())
        if self.quarter_turns:
            chosen, place = self._chosen(numbers)
            turns = torch.where(chosen, (4 * place).clamp(max=3), 0).long()
            # A quarter turn exchanges the axes and mirrors one; half a turn mirrors both.
            bits = {-2: (turns == 1) | (turns == 2), -1: turns >= 2}
            done += bits.values()
            images = torch.where(per_image(turns % 2 == 1, images), images.transpose(-1, -2), images)
            mirrored |= {axis: bit ^ mirrored[axis] if axis in mirrored else bit for axis, bit in bits.items()}
        for axis, flipped in mirrored.items():
            images = torch.where(per_image(flipped, images), images.flip(axis), images)
        return images, [bit.to(images) for bit in done]

    def _warped(self, images: Tensor, draws: Tensor, numbers: Iterator[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """All else, in one interpolation; and what was done.

        The maps lead from where a pixel is to where it is read: they are inverse to what is done to the image.
        """
        still = images.new_zeros(len(images))
        linear, shift, field, done = rotation(still), torch.stack([still, still], 1), None, []
        sides = extent(images)
        if self.scale:
            chosen, _ = self._chosen(numbers)
            size = torch.where(chosen, next(numbers), 0)
            linear = linear * torch.exp(-self.scale * size)[:, None, None]
            done += [size]
        if self.rotation:
            chosen, place = self._chosen(numbers)
            angle = torch.where(chosen, self.rotation * (2 * place - 1), 0)
            linear = linear @ rotation(angle)
            done += [angle.cos() - 1, angle.sin()]
        if self.anisotropy:
            chosen, place = self._chosen(numbers)
            size = torch.where(chosen, next(numbers), 0)
            x, y = size * torch.cos(2 * math.pi * place), size * torch.sin(2 * math.pi * place)
            linear = linear @ stretch(-self.anisotropy * x, -self.anisotropy * y)
            done += [x, y]
        if self.shift:
            chosen, _ = self._chosen(numbers)
            size = torch.where(chosen[:, None], torch.stack([next(numbers), next(numbers)], 1), 0)
            shift = self.shift * size * sides
            done += size.unbind(1)
        if self.elastic:
            chosen, _ = self._chosen(numbers)
            points = self.elastic_points
            controls = draws[:, -2 * points**2 :].reshape(-1, 2, points, points)
            field = smooth_field(controls, images.shape[-2:]) * (self.elastic * sides)
            field = torch.where(per_image(chosen, field), field, 0)
            done += [chosen.to(images)]
        touched = torch.stack(done, 1).ne(0).any(1)
        # What nothing was done to stays as it is, to the bit.
        return torch.where(per_image(touched, images), warp(images, linear, shift, field), images), done
